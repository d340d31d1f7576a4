"""On the device: accuracy, speed and memory. Needs the extra ``bench``."""

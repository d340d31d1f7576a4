"""From a camera to events, on the device: faces are found, cropped as the model wants them, followed, and judged over time.
Extra ``live``; the ground knows these modules by name only."""

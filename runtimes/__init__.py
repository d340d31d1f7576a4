"""One inference engine, one file: ``run_<name>.py``. What an adapter has to offer stands in ``fer_edge/runtime.py``."""

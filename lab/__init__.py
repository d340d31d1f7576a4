"""Scripts that are not shipped: the figures that the documents quote, random CLIPs and BLIP-2s, planted data, the probe, a
small ViT. They run in a checkout, as ``python -m lab.figures --help``."""

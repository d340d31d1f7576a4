"""From a bundle to a kit: all that a box without a network needs. No torch, no engine; extra ``pack``."""

"""Compilers for devices that take no general model file: one file a family, found by name. Nothing here needs torch; each
compiler lives where its maker wants it to, and is asked in a process of its own."""

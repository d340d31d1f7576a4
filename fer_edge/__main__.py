"""The entry point: ``fer-edge``, or ``python -m fer_edge``."""

from __future__ import annotations

import signal

from .process import stoppable


def main() -> None:
    """As :func:`fer_edge.cli.main`, with Ctrl-C in hand while that is imported."""
    try:
        with stoppable():
            from .cli import main as run

            run()
    finally:  # what is left is Python's own end: nothing to clear away, and no traceback
        signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    main()

"""How fast this machine is just now, by pieces of work that have nothing to do with any engine: two runs are only as
comparable as these numbers are equal."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from statistics import median

HANDS = 500
"""Bytes that are handed to and fro."""


def reference_ms() -> float:
    """ms of a fixed piece of work on one processor: sha256 of 2 MB of zeros, median of 9."""
    zeros, times = bytes(1 << 21), []
    for _ in range(9):
        began = time.perf_counter()
        hashlib.sha256(zeros).digest()
        times.append((time.perf_counter() - began) * 1e3)
    return sorted(times)[4]


def handover_us() -> float | None:
    """Microseconds that waking a thread on another processor and being answered take: a byte there and back, less the same
    on one processor. An engine of several threads pays it at every layer, and on a virtual machine it changes by half for
    minutes while one processor alone is as fast as ever. None where there is one processor, or threads cannot be bound."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    free = os.sched_getaffinity(0)
    here, there = min(free), max(free)
    if here == there:
        return None
    try:
        os.sched_setaffinity(0, {here})
        return max(_round_trip_us(there) - _round_trip_us(here), 1e-3)
    except OSError:
        return None
    finally:
        os.sched_setaffinity(0, free)


def _round_trip_us(processor: int) -> float:
    """Median microseconds of a byte to a thread that is bound to a processor, and back. Raises OSError when no thread can be
    bound, as to a processor that went offline."""
    (theirs, to_them), (ours, to_us) = os.pipe(), os.pipe()

    def answer() -> None:
        try:
            os.sched_setaffinity(0, {processor})
            for _ in range(HANDS):
                os.read(theirs, 1)
                os.write(to_us, b"x")
        except OSError:  # its pipe's end, closed below, tells
            pass
        finally:
            os.close(to_us)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    times = []
    try:
        for _ in range(HANDS):
            began = time.perf_counter()
            os.write(to_them, b"x")
            if not os.read(ours, 1):
                raise OSError(f"no thread can be bound to processor {processor}")
            times.append((time.perf_counter() - began) * 1e6)
    finally:
        thread.join()
        for end in (theirs, to_them, ours):
            os.close(end)
    return median(times)

"""The C library's allocator keeps what a large piece of work has freed, for the next one, which may never come."""

from __future__ import annotations

import ctypes


def give_back_freed_memory() -> None:
    """Hand freed memory to the operating system, where the C library can; some tens of milliseconds, without the
    interpreter's lock."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)

"""What the interpreter and the C library do about memory unasked, and a server had better not wait for."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager


def give_back_freed_memory() -> None:
    """Hand freed memory to the operating system, where the C library can; some tens of milliseconds, without the
    interpreter's lock. Otherwise it keeps what a large piece of work has freed for the next one, which may never come.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@contextmanager
def frozen_objects() -> Iterator[None]:
    """What is there now is not searched for cycles until the end: modules and vocabularies live as long as the process,
    and searching them took a quarter of the driver."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()

"""The public face of the native kernels that need no threads: the largest logits, and what this machine can run."""

from __future__ import annotations

import numpy as np

from tinycluster.kernels import _cpu
from tinycluster.kernels._cpu import supported_isas
from tinycluster.kernels.program import F32, I32

__all__ = ["supported_isas", "top_k"]


def top_k(logits_OV: F32, k: int) -> I32:
    """The columns of each row's k largest values, largest first; the lower column wins ties. (O, V) -> (O, k)."""
    if not 1 <= k <= logits_OV.shape[1]:
        raise ValueError(f"k must be between 1 and {logits_OV.shape[1]}, got {k}")
    out = np.empty((logits_OV.shape[0], k), np.int32)
    _cpu.top_k(np.ascontiguousarray(logits_OV), out)
    return out

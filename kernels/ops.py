"""The public face of the native kernels outside a Program: what sampling needs, and what this machine can run.

Definitions are in reference.py; the results have the same bits on every instruction set.
"""

from __future__ import annotations

import numpy as np

from tinycluster.kernels import _cpu
from tinycluster.kernels._cpu import Cpu, supported_isas
from tinycluster.kernels.program import F32, I32

__all__ = ["argmax", "softmax_f32", "supported_isas", "top_k"]

_SINGLE_THREAD = Cpu(1, "auto")


def argmax(logits_OV: F32) -> I32:
    """The column of each row's largest value; the lowest column wins ties. (O, V) -> (O,)."""
    out = np.empty(logits_OV.shape[0], np.int32)
    _cpu.argmax(np.ascontiguousarray(logits_OV), out)
    return out


def top_k(logits_OV: F32, k: int) -> I32:
    """The columns of each row's k largest values, largest first; the lower column wins ties. (O, V) -> (O, k)."""
    if not 1 <= k <= logits_OV.shape[1]:
        raise ValueError(f"k must be between 1 and {logits_OV.shape[1]}, got {k}")
    out = np.empty((logits_OV.shape[0], k), np.int32)
    _cpu.top_k(np.ascontiguousarray(logits_OV), out)
    return out


def softmax_f32(x: F32) -> F32:
    """exp(x - max) / sum over the last dimension, with the kernels' own exp: the same bits on every machine."""
    rows = np.ascontiguousarray(x, np.float32).reshape(-1, x.shape[-1])
    out = np.empty_like(rows)
    _SINGLE_THREAD.softmax(rows, out)
    return out.reshape(x.shape)

"""A CollectiveTable called the way native code does, through the pointers in its capsule."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

_CAPSULE_NAME = b"tinycluster.collective_table"
_POINTER, _SIZE, _OK = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_bool


class _Layout(ctypes.Structure):
    """kernels/cpu/collective_table.h."""

    _fields_ = (
        ("group", _POINTER),
        ("rank", _SIZE),
        ("size", _SIZE),
        ("is_in_memory", _OK),
        ("all_reduce_i64", ctypes.CFUNCTYPE(_OK, _POINTER, _POINTER, _SIZE)),
        ("all_reduce_f32", ctypes.CFUNCTYPE(_OK, _POINTER, _POINTER, _SIZE)),
        ("reduce_scatter_i64", ctypes.CFUNCTYPE(_OK, _POINTER, _POINTER, ctypes.POINTER(_SIZE))),
        ("all_gather", ctypes.CFUNCTYPE(_OK, _POINTER, _POINTER, ctypes.POINTER(_SIZE), _POINTER)),
        ("all_to_all", ctypes.CFUNCTYPE(_OK, _POINTER, _POINTER, ctypes.POINTER(_SIZE), _POINTER)),
        ("broadcast", ctypes.CFUNCTYPE(_OK, _POINTER, _POINTER, _SIZE, _SIZE)),
        ("send", ctypes.CFUNCTYPE(_OK, _POINTER, _POINTER, _SIZE, _SIZE)),
        ("recv", ctypes.CFUNCTYPE(_OK, _POINTER, _POINTER, _SIZE, _SIZE)),
        ("error", ctypes.CFUNCTYPE(ctypes.c_char_p, _POINTER)),
        ("waited_ns", ctypes.CFUNCTYPE(ctypes.c_int64, _POINTER)),
    )


class NativeTable:
    """Looks like a communicator; a call that returns false raises RuntimeError with the table's sentence."""

    def __init__(self, capsule: Any, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self._capsule = capsule  # keeps the group alive
        pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
        pointer_of.restype, pointer_of.argtypes = _POINTER, (ctypes.py_object, ctypes.c_char_p)
        self._table = _Layout.from_address(pointer_of(capsule, _CAPSULE_NAME))

    @property
    def waited_ns(self) -> int:
        return int(self._table.waited_ns(self._table.group))

    def all_reduce(self, x: Any) -> None:
        call = self._table.all_reduce_i64 if x.dtype == np.int64 else self._table.all_reduce_f32
        self._check(call(self._table.group, x.ctypes.data, x.size))

    def reduce_scatter(self, x: Any, counts: Sequence[int]) -> Any:
        self._check(self._table.reduce_scatter_i64(self._table.group, x.ctypes.data, (_SIZE * len(counts))(*counts)))
        start = sum(counts[: self._table.rank])
        return x[start : start + counts[self._table.rank]]

    def all_gather(self, x: Any, counts: Sequence[int]) -> Any:
        out = np.empty(sum(counts), x.dtype)
        num_bytes = (_SIZE * len(counts))(*(count * x.itemsize for count in counts))
        self._check(self._table.all_gather(self._table.group, x.ctypes.data, num_bytes, out.ctypes.data))
        return out

    def all_to_all(self, x: Any, counts: Sequence[Sequence[int]]) -> Any:
        out = np.empty(sum(row[self.rank] for row in counts), x.dtype)
        num_bytes = (_SIZE * self.size**2)(*(count * x.itemsize for row in counts for count in row))
        self._check(self._table.all_to_all(self._table.group, x.ctypes.data, num_bytes, out.ctypes.data))
        return out

    def broadcast(self, x: Any, root: int) -> None:
        self._check(self._table.broadcast(self._table.group, x.ctypes.data, x.nbytes, root))

    def send(self, x: Any, to: int) -> None:
        self._check(self._table.send(self._table.group, x.ctypes.data, x.nbytes, to))

    def recv(self, x: Any, source: int) -> None:
        self._check(self._table.recv(self._table.group, x.ctypes.data, x.nbytes, source))

    def _check(self, is_whole: bool) -> None:
        if not is_whole:
            raise RuntimeError(self._table.error(self._table.group).decode())

"""Weights in the layout of the native kernels: 16 output rows side by side, so that SIMD runs across outputs.

Shape legend: N = output rows, K = columns (k), G = groups of 32 (all units together), Z = tiles of 16 rows.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinycluster.kernels._cpu import Weight
from tinycluster.kernels.formats import (
    GROUP,
    DenseTensor,
    Format,
    GroupedTensor,
    HostTensor,
    dequantize,
    f32_to_bf16,
    quantize,
)
from tinycluster.kernels.program import F32

TILE = 16
CACHE_LINE = 64


class Arena:
    """Memory for many arrays in large chunks, on cache-line boundaries.

    numpy asks the kernel for huge pages for a large array, not for a small one; streaming weights from 4 KiB pages
    spends a good part of its time in address translation.
    """

    def __init__(self, chunk_bytes: int = 64 * 2**20) -> None:
        self._chunk_bytes = chunk_bytes
        self._rest: NDArray[np.uint8] = np.empty(0, np.uint8)

    def place(self, array: NDArray[Any]) -> NDArray[Any]:
        """A contiguous, one-dimensional copy of the array."""
        start = -self._rest.ctypes.data % CACHE_LINE
        if self._rest.nbytes < start + array.nbytes:
            self._rest = np.empty(max(self._chunk_bytes, array.nbytes + CACHE_LINE), np.uint8)
            start = -self._rest.ctypes.data % CACHE_LINE
        taken, self._rest = np.split(self._rest[start:], [array.nbytes])
        np.copyto(taken.view(array.dtype).reshape(array.shape), array)
        return taken.view(array.dtype)


class PackedWeight:
    """A matrix (N, K) whose k is cut into chains of `unit` columns; the last chain may be short."""

    def __init__(self, format: Format, shape: tuple[int, int], unit: int, values: NDArray[Any], arena: Arena) -> None:
        self.format, self.shape, self.unit = format, shape, unit
        self.nbytes = values.nbytes
        self.native = Weight(format, *shape, unit, arena.place(values).view(np.uint8))


def pack(
    tensor: HostTensor, *, unit: int | None = None, format: Format | None = None, arena: Arena | None = None
) -> PackedWeight:
    """Lay out a matrix for `linear`, converting it to `format` first if one is given.

    `unit` is the width of a chain of a row-parallel weight; None is one chain over all of k. Groups may not cross a
    unit: when units are not multiples of 32 columns, converting pads each unit, and a tensor that is already grouped
    becomes float32, which holds its values without loss. Weights that are read in turn share an arena.
    """
    arena = arena or Arena(chunk_bytes=0)
    prepared = prepare(tensor, unit=unit, format=format)
    N, K = tensor.shape
    width = _chain_width(K, unit)
    if isinstance(prepared, DenseTensor):
        return PackedWeight(prepared.format, (N, K), width, _tile_columns(prepared.values), arena)
    return PackedWeight(prepared.format, (N, K), width, _tile_groups(prepared), arena)


def prepare(tensor: HostTensor, *, unit: int | None = None, format: Format | None = None) -> HostTensor:
    """The tensor in `format`, groups padded so that none crosses a unit: what the kernels compute with.

    A padded GroupedTensor has more columns than `tensor`: see `pad_units`.
    """
    wanted = format or tensor.format
    K = tensor.shape[1]
    has_whole_groups = K == 0 or (K % GROUP == 0 and _chain_width(K, unit) % GROUP == 0)
    if isinstance(tensor, GroupedTensor) and wanted == tensor.format:
        return tensor if has_whole_groups else DenseTensor("f32", dequantize(tensor))
    if isinstance(tensor, DenseTensor) and wanted == tensor.format:
        return tensor
    values = dequantize(tensor)
    if wanted == "f32":
        return DenseTensor("f32", values)
    if wanted == "f16":
        return DenseTensor("f16", values.astype(np.float16))
    if wanted == "bf16":
        return DenseTensor("bf16", f32_to_bf16(values))
    return quantize(pad_units(values, unit), wanted)


def pad_units(values_NK: F32, unit: int | None) -> F32:
    """Zeros after each unit's columns up to a multiple of 32."""
    N, K = values_NK.shape
    width = _chain_width(K, unit)
    pieces = [values_NK[:, start : start + width] for start in range(0, K, width)]
    padded = [np.pad(piece, ((0, 0), (0, -piece.shape[1] % GROUP))) for piece in pieces]
    return np.concatenate(padded, axis=1) if padded else np.zeros((N, 0), np.float32)


def _chain_width(K: int, unit: int | None) -> int:
    return unit if unit is not None and unit < K else max(K, 1)


def _tile_rows(array: NDArray[Any]) -> NDArray[Any]:
    """(N, ...) -> (Z, 16, ...), zero rows appended."""
    N = array.shape[0]
    padding = [(0, -N % TILE)] + [(0, 0)] * (array.ndim - 1)
    padded = np.pad(array, padding) if N % TILE else array
    return padded.reshape(len(padded) // TILE, TILE, *array.shape[1:])


def _tile_columns(values_NK: NDArray[Any]) -> NDArray[Any]:
    return _tile_rows(values_NK).transpose(0, 2, 1)


def _tile_groups(tensor: GroupedTensor) -> NDArray[np.uint8]:
    """(Z, G, bytes of a record): what one tile needs of one group lies together, codes, then scales, then minimums."""
    N, K = tensor.codes_NK.shape
    # Quads of k-values are the innermost dimension: one 32-bit lane of a dot-product instruction.
    quads = _tile_rows(tensor.codes_NK.reshape(N, K // GROUP, 8, 4)).transpose(0, 2, 3, 1, 4)
    if tensor.format == "q8":
        codes = (quads.view(np.int8) ^ np.int8(-128)).view(np.uint8)
    else:
        codes = quads[:, :, :4] | (quads[:, :, 4:] << 4)
    scales = [scale for scale in (tensor.scales_NG, tensor.minimums_NG) if scale is not None]
    return np.concatenate(
        [_bytes_of_groups(codes), *(_bytes_of_groups(_tile_columns(scale)) for scale in scales)], axis=2
    )


def _bytes_of_groups(array: NDArray[Any]) -> NDArray[np.uint8]:
    """(Z, G, ...) -> (Z, G, bytes)."""
    Z, G = array.shape[:2]
    return np.ascontiguousarray(array).view(np.uint8).reshape(Z, G, math.prod(array.shape[2:]) * array.itemsize)

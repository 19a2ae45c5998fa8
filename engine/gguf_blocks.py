"""Tensors of a GGUF file: slices of its quantized blocks as our formats, without loss where they fit.

    Q8_0   32 weights: scale f16, 32 int8            weight = code * scale
    Q4_0   32 weights: scale f16, 16 bytes of codes  weight = (code - 8) * scale = code * scale + (-8 * scale)
    Q4_1   32 weights: scale f16, minimum f16, 16 bytes of codes; weight = code * scale + minimum

In the 4-bit types byte i holds code i in its low half and code i + 16 in its high half. Every other quantized type is
dequantized by the gguf package.

Shape legend: N = rows, K = columns, G = groups of 32 along K, B = bytes per row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Ggml
from gguf.quants import dequantize as dequantize_blocks
from numpy.typing import NDArray

from tinycluster.engine.gguf_header import GgufTensor
from tinycluster.engine.tensor_table import DTYPES, DenseFormat, TensorEntry, as_slice, read_dense
from tinycluster.kernels.formats import GROUP, DenseTensor, GroupedTensor, HostTensor
from tinycluster.kernels.program import F32

DENSE: dict[Ggml, DenseFormat] = {Ggml.F32: "f32", Ggml.F16: "f16", Ggml.BF16: "bf16"}
LOSSLESS = (Ggml.Q8_0, Ggml.Q4_0, Ggml.Q4_1)
DEQUANTIZED = (Ggml.Q5_0, Ggml.Q5_1, Ggml.Q4_K, Ggml.Q5_K, Ggml.Q6_K)
SUPPORTED = (*DENSE, *LOSSLESS, *DEQUANTIZED)


class BlockError(ValueError):
    """The contents of a tensor cannot be used; the message lacks the file and the tensor, which the caller knows."""


def table_entry(tensor: GgufTensor) -> TensorEntry:
    """Raises BlockError for a type that is not supported."""
    if tensor.type in DENSE:
        format = DENSE[tensor.type]
        return TensorEntry(tensor.shape, format, format)
    if tensor.type not in SUPPORTED:
        names = ", ".join(type_.name for type_ in SUPPORTED)
        raise BlockError(f"type {tensor.type.name} is not supported; supported are {names}")
    if len(tensor.shape) != 2:
        raise BlockError(f"type {tensor.type.name} is only supported in matrices, the shape is {list(tensor.shape)}")
    if tensor.type in DEQUANTIZED:
        return TensorEntry(tensor.shape, "f32", "q8")
    format_ = "q8" if tensor.type == Ggml.Q8_0 else "q4"
    return TensorEntry(tensor.shape, format_, format_)  # type: ignore[arg-type]


def read_tensor(
    mapped: NDArray[np.uint8], tensor: GgufTensor, slices: Sequence[range], row_order: NDArray[np.int64] | None
) -> HostTensor:
    """Copy slices of a tensor; row_order (N,) says which stored row is row n of the answer, None keeps the order.

    Raises BlockError where a Q4_0 or Q4_1 scale is not a finite number or its minimum does not fit float16.
    """
    raw = mapped[tensor.offset : tensor.offset + tensor.num_bytes]
    if tensor.type in DENSE:
        format = DENSE[tensor.type]
        stored = raw.view(DTYPES[format]).reshape(tensor.shape)
        if row_order is None:
            return read_dense(stored, format, slices)
        columns = tuple(as_slice(part) for part in slices[1:])
        return DenseTensor(format, stored[(slice(None), *columns)][row_order[as_slice(slices[0])]])
    rows_NB = raw.reshape(tensor.shape[0], -1)
    rows = as_slice(slices[0]) if row_order is None else row_order[as_slice(slices[0])]
    return _read_columns(rows_NB, rows, tensor.type, slices[1])


def _read_columns(
    stored_NB: NDArray[np.uint8], rows: slice | NDArray[np.int64], type_: Ggml, columns: range
) -> HostTensor:
    """A cut inside a block reads the whole block, dequantizes it and drops the rest."""
    block_elements, block_bytes = GGML_QUANT_SIZES[type_]
    first, last = columns.start // block_elements, -(-columns.stop // block_elements)
    # Columns are cut before rows are picked: picking by index copies.
    blocks_NB = np.ascontiguousarray(stored_NB[:, first * block_bytes : last * block_bytes][rows])
    is_whole = columns.start % block_elements == 0 and columns.stop % block_elements == 0
    if is_whole and type_ in LOSSLESS:
        return _grouped(blocks_NB, type_)
    start = columns.start - first * block_elements
    values_NK = _dequantize(blocks_NB, type_)[:, start : start + len(columns)]
    return DenseTensor("f32", np.array(values_NK, order="C", copy=True))


def _dequantize(blocks_NB: NDArray[np.uint8], type_: Ggml) -> F32:
    if blocks_NB.size == 0:
        block_elements, block_bytes = GGML_QUANT_SIZES[type_]
        return np.zeros((blocks_NB.shape[0], blocks_NB.shape[1] // block_bytes * block_elements), np.float32)
    values: F32 = dequantize_blocks(blocks_NB, type_)
    return values


def _grouped(blocks_NB: NDArray[np.uint8], type_: Ggml) -> GroupedTensor:
    block_bytes = GGML_QUANT_SIZES[type_][1]
    N, G = blocks_NB.shape[0], blocks_NB.shape[1] // block_bytes
    blocks_NGB = blocks_NB.reshape(N, G, block_bytes)
    scales_NG = _halves(blocks_NGB[:, :, 0:2])
    if type_ == Ggml.Q8_0:
        _check_finite(scales_NG)
        codes = np.ascontiguousarray(blocks_NGB[:, :, 2:]).view(np.int8)
        return GroupedTensor("q8", codes.reshape(N, G * GROUP), scales_NG)
    if type_ == Ggml.Q4_1:
        minimums_NG, packed = _halves(blocks_NGB[:, :, 2:4]), blocks_NGB[:, :, 4:]
    else:
        with np.errstate(over="ignore"):
            minimums_NG, packed = scales_NG * np.float16(-8), blocks_NGB[:, :, 2:]
    codes_NK = np.concatenate([packed & 0x0F, packed >> 4], axis=2).reshape(N, G * GROUP)
    _check_finite(scales_NG, minimums_NG)
    return GroupedTensor("q4", codes_NK, scales_NG, minimums_NG)


def _halves(bytes_NG2: NDArray[np.uint8]) -> NDArray[np.float16]:
    return np.ascontiguousarray(bytes_NG2).view(np.float16)[:, :, 0]


def _check_finite(*parts: NDArray[np.float16]) -> None:
    if not all(np.isfinite(part).all() for part in parts):
        raise BlockError("a group's scale or minimum is not a finite float16 number")

"""Weight formats, as stored in checkpoints and as held in memory.

    f32, f16, bf16   one number per weight (bf16 travels as uint16 bit patterns: numpy has no bfloat16)
    q8               groups of 32 along k: weight = code * scale, code in -127..127 (-128 as stored by others)
    q4               groups of 32 along k: weight = code * scale + minimum, code in 0..15

Shape legend: N = output rows, K = columns (k), G = groups of 32 along k.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tinycluster.kernels.program import F32

Format = Literal["f32", "f16", "bf16", "q8", "q4"]
FORMATS: tuple[Format, ...] = ("f32", "f16", "bf16", "q8", "q4")
GROUP = 32

F16 = NDArray[np.float16]


@dataclass(frozen=True)
class DenseTensor:
    """values (N, K) or (N,): float32, float16, or uint16 holding bfloat16 bits."""

    format: Literal["f32", "f16", "bf16"]
    values: NDArray[np.float32] | NDArray[np.float16] | NDArray[np.uint16]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape


@dataclass(frozen=True)
class GroupedTensor:
    """codes_NK int8 (q8) or uint8 (q4, one code per byte), scales_NG float16, minimums_NG float16 (q4 only)."""

    format: Literal["q8", "q4"]
    codes_NK: NDArray[np.int8] | NDArray[np.uint8]
    scales_NG: F16
    minimums_NG: F16 | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes_NK.shape


HostTensor = DenseTensor | GroupedTensor


def bf16_to_f32(bits: NDArray[np.uint16]) -> F32:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def f32_to_bf16(values: F32) -> NDArray[np.uint16]:
    """Round to nearest even, as hardware does; infinities and NaN keep their class."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def dequantize(tensor: HostTensor) -> F32:
    """The float32 weights a tensor stands for: code * scale, plus the minimum (each operation rounds once)."""
    if isinstance(tensor, DenseTensor):
        if tensor.format == "bf16":
            return bf16_to_f32(tensor.values.view(np.uint16))
        return tensor.values.astype(np.float32)
    N, K = tensor.codes_NK.shape
    codes_NGI = tensor.codes_NK.reshape(N, K // GROUP, GROUP).astype(np.float32)
    values = codes_NGI * tensor.scales_NG.astype(np.float32)[:, :, None]
    if tensor.minimums_NG is not None:
        values = values + tensor.minimums_NG.astype(np.float32)[:, :, None]
    return values.reshape(N, K)


def quantize(values_NK: F32, to: Literal["q8", "q4"]) -> GroupedTensor:
    """Round float32 weights to groups of 32 along k. K must be a multiple of 32 (pad with zeros first)."""
    N, K = values_NK.shape
    if K % GROUP:
        raise ValueError(f"K must be a multiple of {GROUP}, got {K}")
    x_NGI = values_NK.reshape(N, K // GROUP, GROUP)
    if to == "q8":
        scales = (np.abs(x_NGI).max(axis=2) / 127).astype(np.float16)
        codes = np.clip(np.rint(_divide(x_NGI, scales)), -127, 127).astype(np.int8)
        return GroupedTensor("q8", codes.reshape(N, K), scales)
    # Zero stays inside the range, so padding and pruned weights are represented closely.
    low, high = np.minimum(x_NGI.min(axis=2), 0), np.maximum(x_NGI.max(axis=2), 0)
    minimums = low.astype(np.float16)
    scales = ((high - minimums.astype(np.float32)) / 15).astype(np.float16)
    shifted = x_NGI - minimums.astype(np.float32)[:, :, None]
    codes4 = np.clip(np.rint(_divide(shifted, scales)), 0, 15).astype(np.uint8)
    return GroupedTensor("q4", codes4.reshape(N, K), scales, minimums)


def _divide(x_NGI: F32, scales_NG: F16) -> F32:
    scales = scales_NG.astype(np.float32)[:, :, None]
    return np.divide(x_NGI, scales, out=np.zeros_like(x_NGI), where=scales != 0)

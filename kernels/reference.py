"""The definition of every op in numpy: slow, plain, and exact to the bit. Read this file first.

Floating-point addition depends on its order, so the order is part of the definition:
  - an output of `linear` is one scalar chain over k of fused multiply-adds, k ascending;
  - `linear_fixed` runs one such chain per unit of k, turns each into a 64-bit fixed-point number with 32 fractional
    bits, and adds those as integers, which has no order: any dealing of units to ranks gives the same sum;
  - sums inside a row run in 16 lanes (element i in lane i mod 16) that a fixed tree adds up;
  - attention goes over blocks of 64 positions in order, one query row at a time, with its own exp; every 256 positions
    begin anew, and these segments are merged in order.
The native kernels must return the same bits on every instruction set, for every batch and number of threads.

Shape legend: T = tokens, N = output rows, K = columns, G = groups of 32, H = query heads, C = head_dim, P = positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinycluster.kernels.formats import GROUP, DenseTensor, GroupedTensor, HostTensor, dequantize, f32_to_bf16
from tinycluster.kernels.packing import pad_units, prepare
from tinycluster.kernels.paged_cache import KVDtype
from tinycluster.kernels.program import F32, I32, I64, NumericalError

LANES = 16
BLOCK = 64
SEGMENT = 256
LOWEST = np.float32(-3.402823466e38)
SMALLEST_GROUP = np.float32(1e-30)  # below it 127 / max|x| could overflow, and the codes are 0

F64 = NDArray[np.float64]


def fma(a: F32 | np.float32, b: F32 | np.float32, c: F32 | np.float32) -> F32:
    """a * b + c, rounded once to float32.

    The product of two float32 is exact in float64. The float64 sum is rounded to odd (Boldo & Melquiond 2008), which
    makes the second rounding, to float32, equal to a single one.
    """
    product = np.asarray(a, np.float64) * np.asarray(b, np.float64)
    addend = np.asarray(c, np.float64)
    total = product + addend
    rest = total - product
    error = (product - (total - rest)) + (addend - rest)
    bits = np.ascontiguousarray(total).view(np.int64).reshape(total.shape)
    is_inexact_even = (error != 0) & ((bits & 1) == 0) & np.isfinite(total)
    odd = np.where(is_inexact_even, np.nextafter(total, np.where(error > 0, np.inf, -np.inf)), total)
    return np.asarray(odd, np.float64).astype(np.float32)


def add_lanes(lanes: F32) -> F32:
    """The sum of the last dimension's 16 lanes: i and i + 8, then i and i + 4, 2, 1."""
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def _in_lanes(x: F32) -> F32:
    """(..., n) -> (..., ceil(n / 16), 16), zeros appended."""
    padding = [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % LANES)]
    return np.pad(x, padding).reshape(*x.shape[:-1], -1, LANES)


def sum_in_lanes(x: F32) -> F32:
    """The sum of each row: element i is added to lane i mod 16, in order, then the tree."""
    lanes = np.zeros((x.shape[0], LANES), np.float32)
    for part in _in_lanes(x).swapaxes(0, 1):
        lanes = lanes + part
    return add_lanes(lanes)


def exp(x: F32) -> F32:
    """exp(x) by n = rint(x / ln 2), a polynomial on the remainder (Cephes expf, Moshier 1989), and 2 to the n.

    0 below -87, exp(88) above 88, under 1.5 units in the last place between.
    """
    f = np.float32
    clamped = np.minimum(f(88), np.maximum(f(-87), x))
    n = np.rint(clamped * f(1.44269504))
    r = fma(n, f(2.12194440e-4), fma(n, f(-0.693359375), clamped))
    p = np.full_like(r, f(1.9875691500e-4))
    for coefficient in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = fma(p, r, f(coefficient))
    power = fma(p, r * r, r) + f(1)
    exponent = np.where(np.isnan(n), f(0), n).astype(np.int32)
    return np.where(x < f(-87), f(0), power * np.ldexp(f(1), exponent)).astype(np.float32)


def embedding(tokens: I32, weight: HostTensor, first_row: int) -> F32:
    """Rows of the weight; zeros for tokens that this rank does not hold. -0 becomes +0."""
    rows = tokens.astype(np.int64) - first_row
    held = (rows >= 0) & (rows < weight.shape[0])
    out = np.zeros((len(tokens), weight.shape[1]), np.float32)
    out[held] = dequantize(weight)[rows[held]] + np.float32(0)
    return out


def rms_norm(x_TN: F32, weight_C: F32, eps: float) -> F32:
    """x / sqrt(mean(x²) + eps) * weight over every len(weight) consecutive columns."""
    rows = x_TN.reshape(-1, weight_C.shape[0])
    lanes = np.zeros((rows.shape[0], LANES), np.float32)
    for part in _in_lanes(rows).swapaxes(0, 1):
        lanes = fma(part, part, lanes)
    mean = add_lanes(lanes) / np.float32(weight_C.shape[0])
    inverse = np.float32(1) / np.sqrt(mean + np.float32(eps))
    normed: F32 = rows * inverse[:, None] * weight_C
    return normed.reshape(x_TN.shape)


def quantize_activations(x_TK: F32, bits: int) -> tuple[I32, F32, I32]:
    """Codes (T, G, 32) of 8 or 16 bits, scales (T, G) and the codes' sums (T, G). K is a multiple of 32.

    The largest code is 127, or 127 * 256 so that the high byte of a 16-bit code is an int8 again.
    """
    most_code = np.float32(127 if bits == 8 else 127 * 256)
    x_TGI = x_TK.reshape(x_TK.shape[0], x_TK.shape[1] // GROUP, GROUP)
    most = np.abs(x_TGI).max(axis=2, initial=0)
    inverse = np.divide(most_code, most, out=np.zeros_like(most), where=most > SMALLEST_GROUP)
    codes = np.rint(x_TGI * inverse[:, :, None]).astype(np.int32)
    return codes, most / most_code, codes.sum(axis=2, dtype=np.int32)


def _chain(x_TK: F32, weight: HostTensor, bits: int) -> F32:
    """One chain per output element over all columns (T, N)."""
    acc = np.zeros((x_TK.shape[0], weight.shape[0]), np.float32)
    if isinstance(weight, DenseTensor):
        w_NK = dequantize(weight)
        for k in range(x_TK.shape[1]):
            acc = fma(x_TK[:, k : k + 1], w_NK[None, :, k], acc)
        return acc
    codes_TGI, scales_TG, sums_TG = quantize_activations(x_TK, bits)
    w_NGI = weight.codes_NK.reshape(weight.shape[0], -1, GROUP).astype(np.int32)
    for g in range(w_NGI.shape[1]):
        dots = codes_TGI[:, g] @ w_NGI[:, g].T
        scale = scales_TG[:, g : g + 1] * weight.scales_NG[None, :, g].astype(np.float32)
        acc = fma(dots.astype(np.float32), scale, acc)
        if weight.minimums_NG is not None:
            x_sum = scales_TG[:, g : g + 1] * sums_TG[:, g : g + 1].astype(np.float32)
            acc = fma(weight.minimums_NG[None, :, g].astype(np.float32), x_sum, acc)
    return acc


def _columns(weight: HostTensor, columns: slice) -> HostTensor:
    if isinstance(weight, DenseTensor):
        return DenseTensor(weight.format, weight.values[:, columns])
    groups = slice(columns.start // GROUP, columns.stop // GROUP)
    minimums = None if weight.minimums_NG is None else weight.minimums_NG[:, groups]
    return GroupedTensor(weight.format, weight.codes_NK[:, columns], weight.scales_NG[:, groups], minimums)


def linear(x_TK: F32, weight: HostTensor, bias_N: F32 | None = None, bits: int = 16) -> F32:
    """x @ weight.T + bias. Grouped formats round x to `bits` per token and group; the dot inside a group is exact."""
    prepared = prepare(weight)
    x = pad_units(x_TK, None) if isinstance(prepared, GroupedTensor) else x_TK
    out = _chain(x, prepared, bits)
    return out if bias_N is None else out + bias_N


def to_fixed(x: F32, limit: float) -> I64:
    """round(x * 2^32) as int64. NumericalError unless |x| < limit everywhere."""
    if not (np.abs(x) < limit).all():
        raise NumericalError(f"a partial sum is not smaller than {limit:g}")
    return np.rint(x.astype(np.float64) * 2.0**32).astype(np.int64)


def from_fixed(fixed: I64) -> F32:
    return fixed.astype(np.float32) * np.float32(2.0**-32)


def linear_fixed(x_TK: F32, weight: HostTensor, unit: int, limit: float, bits: int = 16) -> I64:
    """x @ weight.T with one chain per `unit` columns; the units are added as fixed-point integers."""
    prepared = prepare(weight, unit=unit)
    K, out = weight.shape[1], np.zeros((x_TK.shape[0], weight.shape[0]), np.int64)
    start = 0
    for k in range(0, K, unit):
        x = x_TK[:, k : k + unit]
        if isinstance(prepared, GroupedTensor):
            x = pad_units(x, None)
        out += to_fixed(_chain(x, _columns(prepared, slice(start, start + x.shape[1])), bits), limit)
        start += x.shape[1]
    return out


def add_fixed(x_TN: F32, fixed_TN: I64, bias_N: F32 | None) -> F32:
    """x + (float32(fixed) + bias)."""
    delta = from_fixed(fixed_TN)
    return x_TN + (delta if bias_N is None else delta + bias_N)


def rope(x_TN: F32, positions_T: I32, cos_PC: F32, sin_PC: F32, head_dim: int) -> F32:
    """Column i of a head turns with column i + head_dim / 2 by the angle of the token's position."""
    x = x_TN.reshape(x_TN.shape[0], -1, head_dim)
    low, high = x[..., : head_dim // 2], x[..., head_dim // 2 :]
    cos, sin = cos_PC[positions_T][:, None, :], sin_PC[positions_T][:, None, :]
    turned = fma(low, cos, np.float32(0) - high * sin), fma(high, cos, low * sin)
    return np.concatenate(turned, axis=-1).reshape(x_TN.shape)


def swiglu(gate: F32, up: F32) -> F32:
    """gate / (1 + exp(-gate)) * up."""
    return gate / (np.float32(1) + exp(np.float32(0) - gate)) * up


def round_kv(x_RC: F32, dtype: KVDtype) -> F32:
    """What the cache gives back for rows of one head: x itself, its nearest bfloat16 (ties to even), or, in groups of
    32 columns (the last may be short), an integer code of -127..127 times a float32 scale. A group with a number that
    is not finite reads as NaN."""
    if dtype == "f32":
        return x_RC
    if dtype == "bf16":
        return dequantize(DenseTensor("bf16", f32_to_bf16(x_RC)))
    padded = np.pad(x_RC, [(0, 0), (0, -x_RC.shape[1] % GROUP)]).reshape(x_RC.shape[0], -1, GROUP)
    is_finite = np.isfinite(padded).all(axis=2, keepdims=True)
    finite = np.where(is_finite, padded, np.float32(0))
    most = np.abs(finite).max(axis=2, keepdims=True)
    inverse = np.divide(np.float32(127), most, out=np.zeros_like(most), where=most > SMALLEST_GROUP)
    codes = np.rint(finite * inverse).astype(np.int32).astype(np.float32)
    rounded: F32 = codes * np.where(is_finite, most / np.float32(127), np.float32(np.nan))
    return rounded.reshape(x_RC.shape[0], -1)[:, : x_RC.shape[1]]


@dataclass(frozen=True)
class Attended:
    """Some positions' share of an attention: the highest score, the sum of exp(score - most), that sum's values."""

    most_H: F32
    total_H: F32
    out_HC: F32

    def merged(self, later: Attended) -> Attended:
        most = np.maximum(self.most_H, later.most_H)
        mine, its = exp(self.most_H - most), exp(later.most_H - most)
        total = fma(self.total_H, mine, later.total_H * its)
        return Attended(most, total, fma(self.out_HC, mine[:, None], later.out_HC * its[:, None]))


def attend(q_HC: F32, k_PC: F32, v_PC: F32, first: int, scale: float) -> F32:
    """One token's query heads of one KV head over positions first .. P - 1, in segments of 256 counted from position 0
    that are merged in order."""
    P, whole = k_PC.shape[0], None
    for start in range(first // SEGMENT * SEGMENT, P, SEGMENT):
        part = _attend_segment(q_HC, k_PC, v_PC, max(first, start), min(P, start + SEGMENT), scale)
        whole = part if whole is None else whole.merged(part)
    assert whole is not None, "a token sees itself"
    return whole.out_HC / whole.total_H[:, None]


def _attend_segment(q_HC: F32, k_PC: F32, v_PC: F32, first: int, end: int, scale: float) -> Attended:
    """An online softmax over positions first .. end - 1, in blocks of 64 counted from position 0."""
    H, C = q_HC.shape
    most, total, out = np.full(H, LOWEST), np.zeros(H, np.float32), np.zeros((H, C), np.float32)
    for start in range(first // BLOCK * BLOCK, end, BLOCK):
        j0, j1 = max(first, start), min(end, start + BLOCK)
        score = np.zeros((H, j1 - j0), np.float32)
        for c in range(C):
            score = fma(q_HC[:, c, None], k_PC[None, j0:j1, c], score)
        scores = np.full((H, BLOCK), np.float32(-np.inf))  # the weight of what is not seen is 0
        scores[:, j0 - start : j1 - start] = score * np.float32(scale)
        now = np.maximum(most, scores.max(axis=1))
        with np.errstate(over="ignore"):  # LOWEST minus something may be -inf, and exp(-inf) is 0
            weights, shrink = exp(scores - now[:, None]), exp(most - now)
        total = fma(total, shrink, sum_in_lanes(weights))
        out, most = out * shrink[:, None], now
        for j in range(j0, j1):
            out = fma(weights[:, j - start, None], v_PC[None, j], out)
    return Attended(most, total, out)


def softmax(x_OV: F32) -> F32:
    """exp(x - max) / sum over each row, the sum in 16 lanes and a fixed tree."""
    e = exp(x_OV - x_OV.max(axis=1, keepdims=True))
    return e / sum_in_lanes(e)[:, None]

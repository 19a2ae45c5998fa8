"""Tables of cosines and sines for rotary position embedding, the same bits on every machine.

The C library and numpy's vector loops give other last bits for pow, log, sin and cos on other processors. So the
frequencies come from decimal arithmetic, rounded to float32 at the end, and the angles' cosines and sines from a
polynomial that uses only + and * and rint. Formulas are those of Hugging Face transformers 5 (`modeling_rope_utils`).

Shape legend: P = positions, F = frequencies = rotary_dim / 2.
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import numpy as np
from numpy.typing import NDArray

from tinycluster.engine.models.spec import ModelConfig, RopeScaling
from tinycluster.kernels.program import F32

F64 = NDArray[np.float64]

DIGITS = 40
PI = Decimal("3.141592653589793238462643383279502884197169")
ROWS_AT_ONCE = 1024

TWO_OVER_PI = float(2 / PI)
# π/2 in three parts (Cody & Waite 1980): a quarter-turn count below 2²⁰ times the first or second part is exact.
HALF_PI_HIGH = float.fromhex("0x1.921fb544p+0")
HALF_PI_MIDDLE = float.fromhex("0x1.0b4611a6p-34")
HALF_PI_LOW = float.fromhex("0x1.3198a2e037073p-69")
# Taylor terms: on |r| <= π/4 what follows is below 2⁻⁶³.
COS_TERMS = tuple((-1) ** k / math.factorial(2 * k) for k in range(10))
SIN_TERMS = tuple((-1) ** k / math.factorial(2 * k + 1) for k in range(9))


def rope_table(config: ModelConfig, max_model_len: int) -> tuple[F32, F32]:
    """cos and sin of position * frequency, float32 (P, F) with P = max_model_len, times yarn's attention factor.

    As in transformers, the angle is the float32 product of position and frequency. `dynamic` scaling depends on the
    sequence length there; here it is fixed at max_model_len, so that chunking and batching can't change a result: a
    max_model_len up to max_position_embeddings gives the unscaled table.
    """
    inv_freq_F = inverse_frequencies(config, max_model_len)
    factor = np.float32(attention_factor(config.rope_scaling))
    cos_PF = np.empty((max_model_len, len(inv_freq_F)), np.float32)
    sin_PF = np.empty_like(cos_PF)
    for start in range(0, max_model_len, ROWS_AT_ONCE):
        rows = slice(start, min(start + ROWS_AT_ONCE, max_model_len))
        positions_P = np.arange(rows.start, rows.stop).astype(np.float32)
        cos, sin = cos_sin(positions_P[:, None] * inv_freq_F[None, :])
        cos_PF[rows], sin_PF[rows] = cos * factor, sin * factor
    return cos_PF, sin_PF


def cos_sin(angle: F32) -> tuple[F32, F32]:
    """cos and sin of angles with magnitude below 2²⁰, computed in float64 and rounded to float32 at the end."""
    x = angle.astype(np.float64)
    quarters = np.rint(x * TWO_OVER_PI)
    r = x - quarters * HALF_PI_HIGH - quarters * HALF_PI_MIDDLE - quarters * HALF_PI_LOW
    square = r * r
    cos_r, sin_r = _horner(square, COS_TERMS), r * _horner(square, SIN_TERMS)
    quadrant = quarters.astype(np.int64) & 3
    is_odd = (quadrant & 1) == 1
    cos = np.where(is_odd, sin_r, cos_r) * np.where((quadrant == 1) | (quadrant == 2), -1.0, 1.0)
    sin = np.where(is_odd, cos_r, sin_r) * np.where(quadrant >= 2, -1.0, 1.0)
    return cos.astype(np.float32), sin.astype(np.float32)


def _horner(x: F64, terms: tuple[float, ...]) -> F64:
    total = np.full_like(x, terms[-1])
    for term in reversed(terms[:-1]):
        total = total * x + term
    return total


def inverse_frequencies(config: ModelConfig, max_model_len: int) -> F32:
    """Radians per position of each pair of columns, highest first, after `rope_scaling`."""
    scaling, dim = config.rope_scaling, config.head_dim
    original_length = scaling.original_max_position_embeddings or config.max_position_embeddings
    with localcontext() as context:
        context.prec = DIGITS
        base = Decimal(config.rope_theta)
        if scaling.rope_type == "dynamic":
            base *= _dynamic_stretch(config, max_model_len)
        plain = [1 / base ** (Decimal(column) / dim) for column in range(0, dim, 2)]
        match scaling.rope_type:
            case "linear":
                scaled = [frequency / Decimal(scaling.factor) for frequency in plain]
            case "llama3":
                scaled = [_llama3(frequency, scaling, original_length) for frequency in plain]
            case "yarn":
                scaled = _yarn(plain, base, scaling, original_length)
            case _:
                scaled = plain
        return np.array([float(frequency) for frequency in scaled]).astype(np.float32)


def attention_factor(scaling: RopeScaling) -> float:
    """What yarn multiplies cosines and sines with (Peng et al. 2023, sec. 3.4); 1 for the other types."""
    if scaling.rope_type != "yarn":
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return _mscale(scaling.factor, scaling.mscale) / _mscale(scaling.factor, scaling.mscale_all_dim)
    return _mscale(scaling.factor, 1.0)


def _mscale(factor: float, mscale: float) -> float:
    with localcontext() as context:
        context.prec = DIGITS
        return float(Decimal("0.1") * Decimal(mscale) * Decimal(factor).ln() + 1) if factor > 1 else 1.0


def _dynamic_stretch(config: ModelConfig, max_model_len: int) -> Decimal:
    """How much the base grows so that the lowest frequency spans max_model_len ("NTK-aware" scaling)."""
    trained, dim = config.max_position_embeddings, config.head_dim
    factor = Decimal(config.rope_scaling.factor)
    length = max(max_model_len, trained)
    return (factor * length / trained - (factor - 1)) ** (Decimal(dim) / (dim - 2))


def _llama3(frequency: Decimal, scaling: RopeScaling, original_length: int) -> Decimal:
    """High frequencies stay, low ones are divided by the factor, those between are interpolated."""
    low, high = Decimal(scaling.low_freq_factor), Decimal(scaling.high_freq_factor)
    turns = original_length * frequency / (2 * PI)
    if turns > high:
        return frequency
    slow = frequency / Decimal(scaling.factor)
    if turns < low:
        return slow
    smooth = (turns - low) / (high - low)
    return (1 - smooth) * slow + smooth * frequency


def _yarn(plain: list[Decimal], base: Decimal, scaling: RopeScaling, original_length: int) -> list[Decimal]:
    """Frequencies that turn more than beta_fast times in the original context stay, below beta_slow are divided."""
    dim = 2 * len(plain)

    def column_of(turns: float) -> Decimal:
        return dim * (original_length / (Decimal(turns) * 2 * PI)).ln() / (2 * base.ln())

    low, high = column_of(scaling.beta_fast), column_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = Decimal(math.floor(low)), Decimal(math.ceil(high))
    low, high = max(low, Decimal(0)), min(high, Decimal(dim - 1))
    if low == high:
        high += Decimal("0.001")
    ramp = [min(max((column - low) / (high - low), Decimal(0)), Decimal(1)) for column in range(len(plain))]
    factor = Decimal(scaling.factor)
    return [fast * (1 - part) + fast / factor * part for fast, part in zip(plain, ramp, strict=True)]

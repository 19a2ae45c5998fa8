from __future__ import annotations

import dataclasses
import hashlib
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.parity.golden import read
from tests.parity.rope_cases import POSITIONS, ROPE_CASES, TABLE_LENGTH
from tinycluster.engine import rope
from tinycluster.engine.models.spec import ModelConfig, RopeScaling
from tinycluster.engine.rope import ROWS_AT_ONCE, attention_factor, cos_sin, inverse_frequencies, rope_table
from tinycluster.kernels.program import F32

U = 2.0**-24
ROWS = list(POSITIONS)
DEFAULT = ROPE_CASES["default"]
TABLE_DIGEST = "744813a43c4cbfcbc23a76d59e04ea14d0c08167947acadb49efabcf3001d000"


def frequency_bound(config: ModelConfig) -> NDArray[np.float64]:
    """How far transformers' float32 frequencies may be from exact ones, relatively.

    Rounding the exponent i / dim costs ln(base) * i / dim, the power 2, the quotient 1, and the scaling up to 8.
    """
    exponent = np.arange(0, config.head_dim, 2) / config.head_dim
    return (math.log(config.rope_theta) * exponent + 11) * U


def distance_to_golden(config: ModelConfig, case: str) -> float:
    """How far the table is from transformers', in units of what float32 rounding explains."""
    angles = np.array(ROWS)[:, None] * inverse_frequencies(ROPE_CASES[case], TABLE_LENGTH).astype(np.float64)
    # The angle carries the frequency's error and one rounding; cos and sin have slope 1 and three roundings.
    bound = attention_factor(ROPE_CASES[case].rope_scaling) * (angles * (frequency_bound(ROPE_CASES[case]) + U) + 3 * U)
    pairs = zip(rope_table(config, TABLE_LENGTH), read([f"rope/{case}/cos", f"rope/{case}/sin"]), strict=True)
    return max(float((np.abs(ours[ROWS].astype(np.float64) - theirs) / bound).max()) for ours, theirs in pairs)


@pytest.mark.parametrize("case", ROPE_CASES)
def test_frequencies_are_those_of_transformers(case: str) -> None:
    (golden,) = read([f"rope/{case}/inv_freq"])
    ours = inverse_frequencies(ROPE_CASES[case], TABLE_LENGTH).astype(np.float64)
    assert np.all(np.abs(ours - golden) <= frequency_bound(ROPE_CASES[case]) * np.abs(golden))


@pytest.mark.parametrize("case", ROPE_CASES)
def test_tables_are_those_of_transformers(case: str) -> None:
    assert distance_to_golden(ROPE_CASES[case], case) <= 1


UNSCALED = {"default", "default_odd_half", "default_high_base", "dynamic_short", "yarn_factor_one"}


@pytest.mark.parametrize("case", sorted(ROPE_CASES.keys() - UNSCALED))
def test_a_table_without_scaling_is_not_that_of_transformers(case: str) -> None:
    plain = dataclasses.replace(ROPE_CASES[case], rope_scaling=RopeScaling())
    assert distance_to_golden(plain, case) > 1


@pytest.mark.parametrize(
    ("case", "field", "value"),
    [
        ("llama3", "low_freq_factor", 1.01),
        ("llama3", "high_freq_factor", 4.04),
        ("yarn", "original_max_position_embeddings", 16384),
        ("yarn_mscale", "mscale_all_dim", 0.7),
        ("yarn_untruncated", "truncate", True),
        ("yarn_untruncated", "beta_fast", 16.2),
        ("yarn_attention_factor", "attention_factor", 1.501),
        ("dynamic_long", "factor", 2.01),
        ("linear", "factor", 4.01),
    ],
)
def test_every_field_of_rope_scaling_counts(case: str, field: str, value: float) -> None:
    config = ROPE_CASES[case]
    fields: dict[str, Any] = {field: value}
    scaling = dataclasses.replace(config.rope_scaling, **fields)
    assert distance_to_golden(dataclasses.replace(config, rope_scaling=scaling), case) > 1


def angles() -> F32:
    """Positions up to the largest contexts, small and tiny angles, and the neighbours of every kind of multiple."""
    generator = np.random.default_rng(5)
    quarters = np.arange(200_000) * (math.pi / 2)
    parts = [
        np.array([0.0, 1.0, 2.0**-126]),
        generator.uniform(0, 2**20, 50_000),
        generator.uniform(0, 8, 50_000),
        quarters,
        quarters * (1 + U),
        2.0 ** generator.uniform(-40, 17, 50_000),
    ]
    return np.concatenate(parts).astype(np.float32)


def worst_error_ulp(angle: F32) -> float:
    """Against the C library's float64 cos and sin, in units in the last place of float32."""
    exact = [np.array([f(x) for x in angle.tolist()]) for f in (math.cos, math.sin)]
    ulps = [np.spacing(np.abs(values).astype(np.float32)).astype(np.float64) for values in exact]
    return max(float((np.abs(c - e) / u).max()) for c, e, u in zip(cos_sin(angle), exact, ulps, strict=True))


def test_cosines_and_sines_are_correctly_rounded() -> None:
    assert worst_error_ulp(angles()) <= 0.5 + 2.0**-20


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HALF_PI_MIDDLE", 0.0),
        ("SIN_TERMS", rope.SIN_TERMS[:4]),
        ("COS_TERMS", rope.COS_TERMS[:4]),
    ],
)
def test_a_broken_polynomial_or_reduction_is_noticed(
    name: str, value: float | tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rope, name, value)
    assert worst_error_ulp(angles()[::7]) > 1


def test_tables_have_the_same_bits_on_every_machine() -> None:
    digest = hashlib.sha256()
    for config in ROPE_CASES.values():
        for table in rope_table(config, TABLE_LENGTH):
            digest.update(table.astype("<f4").tobytes())
    assert digest.hexdigest() == TABLE_DIGEST


@pytest.mark.parametrize("length", [0, 1, 2, 63, ROWS_AT_ONCE - 1, ROWS_AT_ONCE, ROWS_AT_ONCE + 1, 2039])
def test_a_shorter_table_is_the_beginning_of_a_longer_one(length: int) -> None:
    for short, long in zip(rope_table(DEFAULT, length), rope_table(DEFAULT, 2048), strict=True):
        assert short.shape == (length, 32)
        assert short.dtype == np.float32
        np.testing.assert_array_equal(short, long[:length])


def test_dynamic_scaling_up_to_the_trained_length_is_the_plain_table() -> None:
    dynamic = dataclasses.replace(DEFAULT, rope_scaling=RopeScaling("dynamic", factor=4.0))
    for scaled, plain in zip(rope_table(dynamic, 2048), rope_table(DEFAULT, 2048), strict=True):
        np.testing.assert_array_equal(scaled, plain)
    assert np.all(inverse_frequencies(dynamic, 2049)[1:] < inverse_frequencies(DEFAULT, 2048)[1:])


def test_position_zero_turns_nothing() -> None:
    cos, sin = rope_table(DEFAULT, 1)
    assert np.all(cos == 1)
    assert np.all(sin == 0)

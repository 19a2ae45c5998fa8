"""Native sampling against the definition in numpy: the same token in every case."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinycluster.kernels import sampling_reference as definition
from tinycluster.kernels._cpu import Cpu, supported_isas
from tinycluster.kernels.program import F32, I64, NumericalError

Rule = tuple[float, int, float, float]
"""temperature, top_k, top_p, min_p"""

GREEDY: Rule = (0, 0, 1, 0)
VOCABULARIES = (1, 2, 15, 16, 17, 31, 33, 511, 1023, 1024, 1025, 4099)


def rules_of(vocab_size: int) -> list[Rule]:
    """Each filter alone, at its ends and in the middle, and all together."""
    top_ks = (1, 2, 7, 50, vocab_size // 2, vocab_size - 1, vocab_size, 2**62)
    top_ps, min_ps = (1e-9, 0.3, 0.95, 1 - 2**-40, 1 - 2**-53), (1e-300, 1e-13, 0.05, 0.7, 1.0)
    alone = (
        [(0.8, k, 1.0, 0.0) for k in top_ks] + [(0.8, 0, p, 0.0) for p in top_ps] + [(0.8, 0, 1.0, m) for m in min_ps]
    )
    mixed = [(0.8, 50, 0.95, 0.05), (2.0, vocab_size // 2 + 1, 0.999, 1e-4), (0.05, 3, 0.5, 1e-9), (1.0, 0, 0.9, 0.01)]
    return [GREEDY, (1e-6, 5, 0.5, 0.0), (0.8, 0, 1.0, 0.0), (2.0, -1, 1.0, 0.0), *alone, *mixed]


def call(cpu: Cpu, logits_OV: F32, rules: list[Rule], seeds: list[int]) -> tuple[int | None, I64]:
    """The first row without a token, and the tokens."""
    temperature, top_k, top_p, min_p = zip(*rules, strict=True)
    tokens = np.full(len(rules), -1, np.int64)
    bad_row = cpu.sample(
        logits_OV,
        np.array(temperature, np.float64),
        np.array(top_k, np.int64),
        np.array(top_p, np.float64),
        np.array(min_p, np.float64),
        np.array(seeds, np.uint64),
        np.arange(len(rules), dtype=np.uint64),
        tokens,
    )
    return bad_row, tokens


def native(cpu: Cpu, logits_OV: F32, rules: list[Rule], seeds: list[int]) -> list[int]:
    bad_row, tokens = call(cpu, logits_OV, rules, seeds)
    assert bad_row is None
    return tokens.tolist()


def defined(logits_OV: F32, rules: list[Rule], seeds: list[int]) -> list[int]:
    return [
        definition.sample(logits_V, *rule, seed, position)
        for position, (logits_V, rule, seed) in enumerate(zip(logits_OV, rules, seeds, strict=True))
    ]


def hard_logits(vocab_size: int) -> dict[str, F32]:
    """Rows (V,) that are hard in one way each."""
    rng = np.random.default_rng(vocab_size)
    normal = rng.standard_normal(vocab_size).astype(np.float32)
    one_huge, masked, cluster = normal.copy(), np.where(normal > 0.5, normal, np.float32(-np.inf)), normal * 1e-6
    one_huge[vocab_size // 2] = 3e4
    masked[-1], cluster[0] = 1, 5
    signed_zeros = np.where(normal > 0, np.float32(0.0), np.float32(-0.0))
    return {
        "normal": normal * 3,
        "ties": np.round(normal * 2),
        "equal": np.full(vocab_size, 7.5, np.float32),
        "signed zeros": signed_zeros,
        "one huge": one_huge,
        "far from zero": normal + np.float32(2**20),
        "masked": masked,
        "masked by a large number": np.where(np.isfinite(masked), masked, np.float32(-1e30)),
        "the whole range": np.copysign(np.float32(1e37), normal) * (np.arange(vocab_size) > 0),
        "cluster": cluster,
        "neighbours": (np.float32(1) + np.float32(2**-23) * (rng.integers(0, 5, vocab_size))).astype(np.float32),
        "denormal": normal * np.float32(1e-41),
        "wide": normal * 40,
        "descending": np.linspace(20, -80, vocab_size, dtype=np.float32),
    }


@pytest.mark.parametrize("vocab_size", VOCABULARIES)
def test_every_rule_gives_the_defined_token_on_every_instruction_set(vocab_size: int) -> None:
    cpus, rules = [Cpu(1, isa) for isa in supported_isas()], rules_of(vocab_size)
    seeds = [97 * vocab_size + index for index in range(len(rules))]
    for name, logits_V in hard_logits(vocab_size).items():
        logits_OV = np.tile(logits_V, (len(rules), 1))
        expected = defined(logits_OV, rules, seeds)
        for cpu in cpus:
            assert native(cpu, logits_OV, rules, seeds) == expected, (name, cpu.isa)


def test_a_large_vocabulary_gives_the_defined_tokens_on_any_number_of_threads() -> None:
    vocab_size = 49_152
    rules = [
        GREEDY,
        (0.8, 0, 1.0, 0.0),
        (0.8, 50, 1.0, 0.0),
        (1.5, 0, 0.95, 0.0),
        (0.8, 0, 1.0, 0.05),
        (1.0, 40_000, 0.9, 0.0),
    ]
    rows = list(hard_logits(vocab_size).values())[:3]
    logits_OV = np.stack([rows[index % 3] for index in range(2 * len(rules))])
    seeds = [2**63 - 1 - index for index in range(2 * len(rules))]
    expected = defined(logits_OV, rules * 2, seeds)
    for isa in supported_isas():
        for num_threads in (1, 2, 3):
            assert native(Cpu(num_threads, isa), logits_OV, rules * 2, seeds) == expected


values = st.one_of(
    st.floats(-30, 30, width=32),
    st.sampled_from([0.0, -0.0, 1.0, 1 + 2**-23, -np.inf, -1e30, 1e-40]),
    st.floats(-(2.0**127), 2.0**127, width=32),
)
rules = st.tuples(
    st.sampled_from([0.0, 1e-5, 1e-3, 0.3, 0.8, 1.0, 2.0]),
    st.integers(-1, 60),
    st.one_of(st.just(1.0), st.floats(0, 1, exclude_min=True)),
    st.one_of(st.just(0.0), st.floats(0, 1)),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(values, min_size=1, max_size=50), rules, st.integers(0, 2**63 - 1), st.integers(1, 40))
def test_any_logits_and_parameters_give_the_defined_token(
    logits: list[float], rule: Rule, seed: int, repeats: int
) -> None:
    logits_OV = np.array(logits * repeats, np.float32)[None]
    try:
        expected = defined(logits_OV, [rule], [seed])
    except NumericalError:
        assert all(call(Cpu(1, isa), logits_OV, [rule], [seed])[0] == 0 for isa in supported_isas())
        return
    for isa in supported_isas():
        assert native(Cpu(1, isa), logits_OV, [rule], [seed]) == expected


@contextmanager
def another_definition(name: str, broken: object) -> Iterator[None]:
    with mock.patch.object(definition, name, broken):
        yield


@pytest.mark.parametrize(
    ("name", "broken", "rule"),
    [
        ("random_bits", lambda seed, position: (position * 2**60) % 2**64, (0.8, 0, 1.0, 0.0)),
        ("largest", lambda scaled_V, ids_N, count: ids_N[:count], (0.8, 900, 1.0, 0.0)),
        ("fraction", lambda share, weight: int(share * weight * 0.99), (0.8, 0, 0.95, 0.0)),
        ("fraction", lambda share, weight: int(share * weight * 0.9), (0.8, 0, 1.0, 0.05)),
    ],
)
def test_another_definition_gives_other_tokens(name: str, broken: object, rule: Rule) -> None:
    logits_OV = np.tile(hard_logits(1025)["normal"] / 6, (200, 1))
    rules, seeds = [rule] * 200, list(range(200))
    tokens = native(Cpu(1), logits_OV, rules, seeds)
    assert tokens == defined(logits_OV, rules, seeds)
    with another_definition(name, broken):
        assert tokens != defined(logits_OV, rules, seeds)


@pytest.mark.parametrize("isa", supported_isas())
@pytest.mark.parametrize("at", [0, 16, 39])
def test_the_first_row_without_a_finite_largest_logit_is_named(isa: str, at: int) -> None:
    for value in (np.nan, -np.nan, np.inf):
        logits_OV = np.zeros((5, 40), np.float32)
        logits_OV[2, at], logits_OV[4, 0] = value, np.nan
        arrays = [np.full(5, value) for value in (0.5, np.int64(0), 1.0, 0.0, np.uint64(0), np.uint64(0))]
        for temperature in (0.0, 0.5):
            arrays[0] = np.full(5, temperature)
            assert Cpu(2, isa).sample(logits_OV, *arrays, np.empty(5, np.int64)) == 2
    only_masked = np.full((1, 40), -np.inf, np.float32)
    assert Cpu(1, isa).sample(only_masked, *[array[:1] for array in arrays], np.empty(1, np.int64)) == 0


def test_rows_and_parameters_that_do_not_match_are_refused() -> None:
    floats, counts = np.ones(2), np.zeros(2, np.uint64)
    logits_OV, top_k, out = np.zeros((2, 4), np.float32), np.zeros(2, np.int64), np.empty(2, np.int64)
    with pytest.raises(ValueError, match="one entry per row"):
        Cpu(1).sample(logits_OV, floats, top_k, floats, floats, counts, counts[:1], out)
    with pytest.raises(ValueError, match="between 1 and"):
        Cpu(1).sample(logits_OV[:, :0], floats, top_k, floats, floats, counts, counts, out)

"""Log-probabilities: native against the definition to the bit, and the definition against float64 arithmetic."""

from __future__ import annotations

import math
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.test_sampling import hard_logits
from tinycluster.kernels import logprobs_reference as definition
from tinycluster.kernels._cpu import Cpu, supported_isas
from tinycluster.kernels.program import F32, NumericalError

Told = tuple[float, int, list[tuple[int, float]]]


def native(cpu: Cpu, logits_OV: F32, rows: list[int], tokens: list[int], num_top: int) -> list[Told] | int:
    """What is told of each row, or the first bad one."""
    count = len(rows)
    logprob, rank = np.full(count, np.nan, np.float32), np.zeros(count, np.int32)
    top, top_logprobs = np.full((count, num_top), -1, np.int32), np.full((count, num_top), np.nan, np.float32)
    bad = cpu.logprobs(logits_OV, np.array(rows), np.array(tokens), logprob, rank, top, top_logprobs)
    if bad is not None:
        return bad
    pairs = [
        list(zip(ids, values, strict=True)) for ids, values in zip(top.tolist(), top_logprobs.tolist(), strict=True)
    ]
    return list(zip(logprob.tolist(), rank.tolist(), pairs, strict=True))


def defined(logits_V: F32, token: int, num_top: int) -> Told:
    logprob, rank, top = definition.logprobs(logits_V, token, num_top)
    return float(logprob), rank, [(best, float(value)) for best, value in top]


@pytest.mark.parametrize("vocab_size", [1, 2, 15, 16, 17, 33, 1023, 1025, 4099])
def test_native_and_definition_tell_the_same_of_hard_rows(vocab_size: int) -> None:
    cpus = [Cpu(2, isa) for isa in supported_isas()]
    for name, logits_V in hard_logits(vocab_size).items():
        tokens = [0, vocab_size - 1, int(logits_V.argmax()), int(logits_V.argmin()), vocab_size // 2]
        for num_top in {0, 1, min(20, vocab_size)}:
            expected = [defined(logits_V, token, num_top) for token in tokens]
            for cpu in cpus:
                told = native(cpu, np.stack([logits_V, logits_V]), [0, 1, 1, 0, 1], tokens, num_top)
                assert told == expected, (name, cpu.isa, num_top)


values = st.one_of(
    st.floats(-30, 30, width=32),
    st.sampled_from([0.0, -0.0, 1.0, 1 + 2**-23, -np.inf, -1e30, 1e-40]),
    st.floats(-(2.0**127), 2.0**127, width=32),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(values, min_size=1, max_size=40), st.integers(1, 30), st.integers(0, 20), st.data())
def test_native_and_definition_tell_the_same_of_any_row(
    logits: list[float], repeats: int, num_top: int, data: st.DataObject
) -> None:
    logits_V = np.array(logits * repeats, np.float32)
    token, num_top = data.draw(st.integers(0, len(logits_V) - 1)), min(num_top, len(logits_V))
    try:
        expected: object = [defined(logits_V, token, num_top)]
    except NumericalError:
        expected = 0
    for isa in supported_isas():
        assert native(Cpu(1, isa), logits_V[None], [0], [token], num_top) == expected


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_first_row_that_is_not_finite_is_named(value: float) -> None:
    logits_OV = np.zeros((4, 40), np.float32)
    logits_OV[1, 7] = logits_OV[2, 39] = value
    for isa in supported_isas():
        assert native(Cpu(2, isa), logits_OV, [0, 3, 2, 1, 0], [0] * 5, 2) == 2
    with pytest.raises(NumericalError):
        definition.logprobs(logits_OV[1], 0, 1)


def exact(logits_V: F32) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    x_V = logits_V.astype(np.float64)
    out: np.ndarray[tuple[int], np.dtype[np.float64]] = x_V - x_V.max() - np.log(np.exp(x_V - x_V.max()).sum())
    return out


def test_the_definition_is_the_logarithm_of_a_softmax() -> None:
    for vocab_size in (1, 17, 1025, 49_152):
        logits_V = 4 * np.random.default_rng(vocab_size).standard_normal(vocab_size).astype(np.float32)
        logprob, rank, top = definition.logprobs(logits_V, vocab_size // 3, min(20, vocab_size))
        expected_V = exact(logits_V)
        # The sum has at most 1.5 units in the last place from each exponential, half a unit from each of n / 16 + 4
        # additions of positive numbers, and the result half a unit more.
        bound = 2**-24 * (3 + vocab_size / 16 + 4 + abs(float(logprob)) + 1)
        assert abs(float(logprob) - expected_V[vocab_size // 3]) <= bound
        assert rank == 1 + int((logits_V > logits_V[vocab_size // 3]).sum())
        assert [token for token, _ in top] == sorted(range(vocab_size), key=lambda token: -logits_V[token])[:20]
        assert max(abs(float(value) - expected_V[token]) for token, value in top) <= bound


def test_of_equal_logits_the_lower_id_has_the_better_place() -> None:
    logits_V = np.array([1, 3, 2, 3, 2, 3], np.float32)
    places = [definition.logprobs(logits_V, token, 0)[1] for token in range(6)]
    assert places == [6, 1, 4, 2, 5, 3]
    assert [token for token, _ in definition.logprobs(logits_V, 0, 4)[2]] == [1, 3, 5, 2]


@given(st.floats(2.0**-100, 2.0**100))
def test_the_own_logarithm_is_exact_to_two_units_in_the_last_place(x: float) -> None:
    assert abs(definition.log(x) - math.log(x)) <= 2 * math.ulp(math.log(x)) + 2**-54


def test_another_definition_tells_other_numbers() -> None:
    logits_V = hard_logits(1025)["normal"]
    told = native(Cpu(1), logits_V[None], [0], [5], 3)
    assert told == [defined(logits_V, 5, 3)]
    with mock.patch.object(definition, "LOG_TERMS", 3):
        assert told != [defined(logits_V, 5, 3)]
    assert told != [defined(logits_V, 6, 3)]


def test_arrays_that_do_not_match_are_refused() -> None:
    logits_OV = np.zeros((2, 4), np.float32)
    for rows, tokens, num_top in (([2], [0], 1), ([-1], [0], 1), ([0], [4], 1), ([0], [-2], 1), ([0], [0], 5)):
        with pytest.raises(ValueError, match=r"one of the logits|at most V"):
            native(Cpu(1), logits_OV, rows, tokens, num_top)
    with pytest.raises(ValueError, match="one entry per row"):
        native(Cpu(1), logits_OV, [0, 1], [0], 1)

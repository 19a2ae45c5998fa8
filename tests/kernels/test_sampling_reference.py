"""The definition of sampling against a plainer one that sorts everything and adds fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from tinycluster.kernels.program import F32, NumericalError
from tinycluster.kernels.reference import softmax
from tinycluster.kernels.sampling_reference import mix64, random_below, random_bits, sample

Rule = tuple[float, int, float, float]
"""temperature, top_k, top_p, min_p"""

RULES: list[Rule] = [
    (0.8, 0, 1, 0),
    (1.5, 1, 1, 0),
    (0.8, 7, 1, 0),
    (1.0, 10**9, 1, 0),
    (1.0, -1, 1, 0),
    (0.8, 0, 0.9, 0),
    (2.0, 0, 0.999, 0),
    (1.0, 0, 1e-9, 0),
    (0.8, 0, 1, 0.05),
    (1.0, 0, 1, 1.0),
    (0.7, 20, 0.6, 0.01),
]


def plain_weights(logits_V: F32, rule: Rule) -> dict[int, int]:
    """What is left after all filters: everything sorted, shares as exact fractions."""
    temperature, top_k, top_p, min_p = rule
    scaled_V = logits_V / np.float32(temperature)
    weights = [int(Fraction(float(p)) * 2**50) for p in softmax(scaled_V[None])[0]]
    order = sorted(range(len(weights)), key=lambda token: (-scaled_V[token], token))
    if min_p > 0:
        order = [token for token in order if weights[token] >= Fraction(min_p) * max(weights)]
    if top_k > 0:
        order = order[:top_k]
    wanted = Fraction(top_p) * sum(weights[token] for token in order)
    kept: list[int] = []
    reached = 0
    for token in order:
        kept.append(token)
        reached += weights[token]
        if top_p < 1 and reached >= wanted:
            break
    return {token: weights[token] for token in sorted(kept)}


def plain_sample(logits_V: F32, rule: Rule, seed: int, position: int) -> int:
    kept = plain_weights(logits_V, rule)
    point = Fraction(random_bits(seed, position), 2**64) * sum(kept.values())
    reached = 0
    for token, weight in kept.items():
        reached += weight
        if reached > point:
            return token
    raise AssertionError("the weights do not reach the point")


@pytest.mark.parametrize("rule", RULES)
def test_a_sample_is_the_one_that_sorting_and_fractions_give(rule: Rule) -> None:
    for vocab_size in (1, 2, 17, 255, 256, 257, 900):
        for seed in range(4):
            # Few different values make many ties.
            logits_V = np.random.default_rng(seed).normal(size=vocab_size).astype(np.float32) * 3
            logits_V = np.round(logits_V * (1 + seed)) / np.float32(1 + seed)
            token = sample(logits_V, *rule, seed, position=vocab_size)
            assert token == plain_sample(logits_V, rule, seed, position=vocab_size)


def test_greedy_takes_the_largest_logit_and_of_equal_ones_the_lowest_id() -> None:
    logits_V = np.array([0.5, 3.0, -1.0, 3.0], np.float32)
    for rule in ((0.0, 0, 1.0, 0.0), (1e-6, 0, 1.0, 0.0), (1.0, 1, 1.0, 0.0)):
        assert sample(logits_V, *rule, seed=9, position=4) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_numbers_are_an_error(value: float) -> None:
    logits_V = np.array([0, value, 1], np.float32)
    with pytest.raises(NumericalError, match="not a finite number"):
        sample(logits_V, 0.0, 0, 1, 0, 0, 0)
    with pytest.raises(NumericalError, match="divided by the temperature"):
        sample(np.array([0, 1e36], np.float32), 1e-4, 0, 1, 0, 0, 0)


def test_random_bits_are_those_of_splitmix64() -> None:
    """The first outputs of the authors' reference program for seed 0; mix64(0) is 0."""
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [random_bits(0, position) for position in range(3)] == expected


def test_random_numbers_are_even_and_stay_below_their_bound() -> None:
    assert random_below(1, seed=3, position=8) == 0
    for seed in (0, 1, 2**63 - 1):
        counts = np.bincount([random_below(10, seed, position) for position in range(10_000)], minlength=10)
        assert len(counts) == 10
        assert ((counts - 1000) ** 2 / 1000).sum() < 9 + 5 * np.sqrt(18)
    largest_bound = 2**51
    assert all(0 <= random_below(largest_bound, seed, 0) < largest_bound for seed in range(100))


def test_neighbouring_seeds_do_not_share_their_numbers() -> None:
    numbers = {random_bits(seed, position) for seed in range(200) for position in range(200)}
    assert len(numbers) == 40_000
    assert len({mix64(x) for x in range(1000)}) == 1000

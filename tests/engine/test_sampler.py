"""The sampler against a plain definition that sorts everything and adds fractions."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from tinycluster.engine.errors import RequestError
from tinycluster.engine.random_bits import mix64, random_below, random_bits
from tinycluster.engine.request import SamplingParams
from tinycluster.engine.sampler import Sampler
from tinycluster.engine.sampling_rules import check_sampling
from tinycluster.kernels.ops import softmax_f32
from tinycluster.kernels.program import F32, NumericalError

PARAMS = [
    SamplingParams(temperature=0.8),
    SamplingParams(temperature=1.5, top_k=1),
    SamplingParams(temperature=0.8, top_k=7),
    SamplingParams(temperature=1.0, top_k=10**9),
    SamplingParams(temperature=1.0, top_k=-1),
    SamplingParams(temperature=0.8, top_p=0.9),
    SamplingParams(temperature=2.0, top_p=0.999),
    SamplingParams(temperature=1.0, top_p=1e-9),
    SamplingParams(temperature=0.8, min_p=0.05),
    SamplingParams(temperature=1.0, min_p=1.0),
    SamplingParams(temperature=0.7, top_k=20, top_p=0.6, min_p=0.01),
]


def softmax(x_V: F32) -> F32:
    exp_V = np.exp(x_V - x_V.max())
    probabilities: F32 = exp_V / exp_V.sum()
    return probabilities


def plain_weights(logits_V: F32, params: SamplingParams) -> dict[int, int]:
    """What is left after all filters, by the definition: everything sorted, shares as exact fractions."""
    scaled_V = logits_V / np.float32(params.temperature)
    weights = [int(Fraction(float(p)) * 2**50) for p in softmax(scaled_V)]
    order = sorted(range(len(weights)), key=lambda token: (-scaled_V[token], token))
    if params.min_p > 0:
        order = [token for token in order if weights[token] >= Fraction(params.min_p) * max(weights)]
    if params.top_k > 0:
        order = order[: params.top_k]
    wanted = Fraction(params.top_p) * sum(weights[token] for token in order)
    kept: list[int] = []
    reached = 0
    for token in order:
        kept.append(token)
        reached += weights[token]
        if params.top_p < 1 and reached >= wanted:
            break
    return {token: weights[token] for token in sorted(kept)}


def plain_sample(logits_V: F32, params: SamplingParams, seed: int, position: int) -> int:
    kept = plain_weights(logits_V, params)
    point = Fraction(random_bits(seed, position), 2**64) * sum(kept.values())
    reached = 0
    for token, weight in kept.items():
        reached += weight
        if reached > point:
            return token
    raise AssertionError("the weights do not reach the point")


def logits_of(vocab_size: int, seed: int, spread: float = 3.0) -> F32:
    return (np.random.default_rng(seed).normal(size=vocab_size) * spread).astype(np.float32)


@pytest.mark.parametrize("params", PARAMS)
def test_the_sampler_equals_the_plain_definition(params: SamplingParams) -> None:
    sampler = Sampler(softmax)
    for vocab_size in (1, 2, 17, 255, 256, 257, 900):
        for seed in range(4):
            # Few different values make many ties.
            logits_V = np.round(logits_of(vocab_size, seed) * (1 + seed)) / np.float32(1 + seed)
            token = sampler.sample(logits_V, params, seed, position=vocab_size)
            assert token == plain_sample(logits_V, params, seed, position=vocab_size)


def test_a_flat_distribution_over_a_large_vocabulary_is_cut_exactly() -> None:
    sampler, params = Sampler(softmax), SamplingParams(temperature=2.0, top_p=0.95)
    logits_V = np.zeros(5000, np.float32)
    tokens = {sampler.sample(logits_V, params, seed=1, position=position) for position in range(800)}
    assert max(tokens) < 4750, "of equal logits the lower ids are kept"
    assert max(tokens) > 4700


class LateBorder(Sampler):
    """Draws the token after the right one where it can."""

    def sample(self, logits_V: F32, params: SamplingParams, seed: int, position: int) -> int:
        return min(super().sample(logits_V, params, seed, position) + 1, len(logits_V) - 1)


def chi_square(sampler: Sampler, params: SamplingParams, num_draws: int) -> tuple[float, int]:
    """The statistic of draws against the kept probabilities, and its degrees of freedom."""
    logits_V = logits_of(50, seed=3, spread=1.0)
    kept = plain_weights(logits_V, params)
    counts = np.bincount([sampler.sample(logits_V, params, 5, position) for position in range(num_draws)], minlength=50)
    expected = np.zeros(50)
    expected[list(kept)] = [weight / sum(kept.values()) * num_draws for weight in kept.values()]
    assert not counts[expected == 0].any() or isinstance(sampler, LateBorder)
    used = expected > 0
    return float((((counts - expected) ** 2)[used] / expected[used]).sum()), int(used.sum()) - 1


@pytest.mark.parametrize("params", [PARAMS[0], PARAMS[2], PARAMS[5], PARAMS[8], PARAMS[10]])
def test_draws_follow_the_distribution(params: SamplingParams) -> None:
    statistic, freedom = chi_square(Sampler(softmax), params, num_draws=6000)
    # Mean `freedom`, standard deviation sqrt(2 * freedom): five deviations are never seen with a fixed, fair seed.
    limit = freedom + 5 * np.sqrt(2 * freedom)
    assert statistic < limit
    broken, _ = chi_square(LateBorder(softmax), params, num_draws=6000)
    assert broken > limit


def test_greedy_takes_the_largest_logit_and_of_equal_ones_the_lowest_id() -> None:
    logits_V = np.array([0.5, 3.0, -1.0, 3.0], np.float32)
    for params in (SamplingParams(temperature=0), SamplingParams(temperature=1e-6), SamplingParams(top_k=1)):
        assert Sampler(softmax).sample(logits_V, params, seed=9, position=4) == 1


def test_a_token_depends_on_seed_and_position_and_on_nothing_else() -> None:
    logits_V, params = logits_of(300, seed=1), SamplingParams(temperature=1.2, top_p=0.95)
    alone = [Sampler(softmax).sample(logits_V, params, 7, position) for position in range(40)]
    busy = Sampler(softmax)
    mixed = []
    for position in reversed(range(40)):
        busy.sample(logits_of(1 + 13 * position, seed=position), PARAMS[position % len(PARAMS)], position, 3)
        mixed.append(busy.sample(logits_V.copy(), params, 7, position))
    assert mixed[::-1] == alone
    assert alone != [Sampler(softmax).sample(logits_V, params, 8, position) for position in range(40)]
    assert len(set(alone)) > 5


def test_the_logits_are_left_as_they_are() -> None:
    logits_V = logits_of(300, seed=1)
    logits_V.flags.writeable = False
    for params in PARAMS:
        Sampler(softmax).sample(logits_V, params, seed=0, position=0)


@pytest.mark.parametrize("exact_softmax", [softmax, softmax_f32])
def test_a_masked_token_is_never_drawn(exact_softmax: Callable[[F32], F32]) -> None:
    logits_V = np.full(20, -np.inf, np.float32)
    logits_V[[4, 11]] = 1.0
    tokens = {Sampler(exact_softmax).sample(logits_V, SamplingParams(), 0, position) for position in range(50)}
    assert tokens == {4, 11}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_numbers_are_an_error(value: float) -> None:
    logits_V = logits_of(20, seed=1)
    logits_V[3] = value
    with pytest.raises(NumericalError, match="position 12"):
        Sampler(softmax).sample(logits_V, SamplingParams(temperature=0), seed=0, position=12)


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


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("temperature", [0, 2, 0.3], [-0.1, 2.1, float("nan"), float("inf")]),
        ("top_k", [-1, 0, 1, 10**9], [-2]),
        ("top_p", [1, 1e-9], [0, 1.1, -1, float("nan")]),
        ("min_p", [0, 1], [-0.1, 1.1, float("nan")]),
        ("seed", [None, 0, 2**63 - 1], [-1, 2**63]),
        ("max_tokens", [None, 1], [0, -1]),
        ("stop", [(), ("a", "b", "c", "d")], [("a", ""), ("a", "b", "c", "d", "e")]),
        ("stop_token_ids", [(), (0, 99)], [(-1,), (100,)]),
    ],
)
def test_sampling_parameters_out_of_range_are_named(field: str, good: list[object], bad: list[object]) -> None:
    for value in good:
        check_sampling(SamplingParams(**{field: value}), vocab_size=100)  # type: ignore[arg-type]
    for value in bad:
        with pytest.raises(RequestError, match=f"^{field} must be ") as error:
            check_sampling(SamplingParams(**{field: value}), vocab_size=100)  # type: ignore[arg-type]
        assert error.value.param == field

"""The sampler of a step: rows in, tokens out."""

from __future__ import annotations

import numpy as np
import pytest

from tinycluster.engine.batch import Outputs
from tinycluster.engine.request import PENDING, Row, SamplingParams
from tinycluster.engine.sampler import Sampler
from tinycluster.kernels import sampling_reference as definition
from tinycluster.kernels._cpu import Cpu
from tinycluster.kernels.program import F32, I64, NumericalError

PARAMS = [
    SamplingParams(temperature=0.8),
    SamplingParams(temperature=0),
    SamplingParams(temperature=0.8, top_k=7),
    SamplingParams(temperature=1.0, top_k=10**30),
    SamplingParams(temperature=1.0, top_k=-1),
    SamplingParams(temperature=0.8, top_p=0.9),
    SamplingParams(temperature=0.8, min_p=0.05),
    SamplingParams(temperature=0.7, top_k=20, top_p=0.6, min_p=0.01),
]


def logits_of(vocab_size: int, seed: int, spread: float = 3.0) -> F32:
    return (np.random.default_rng(seed).normal(size=vocab_size) * spread).astype(np.float32)


def row_of(params: SamplingParams, seed: int, position: int) -> Row:
    """A row whose sampled token will stand at `position`."""
    return Row(0, (5, PENDING), position - 2, (0,), True, params, seed)


def sample(sampler: Sampler, logits_OV: F32, rows: list[Row]) -> I64:
    return sampler.sample(logits_OV, Outputs(rows, np.array([row.position + 2 for row in rows], np.int32)))


def draws(logits_V: F32, params: SamplingParams, seed: int, positions: range) -> I64:
    rows = [row_of(params, seed, position) for position in positions]
    return sample(Sampler(Cpu(1)), np.tile(logits_V, (len(rows), 1)), rows)


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_each_row_gets_the_token_that_its_own_parameters_seed_and_position_define(num_threads: int) -> None:
    rows = [row_of(params, seed, 7 * seed + 2) for seed in range(5) for params in PARAMS]
    logits_OV = np.stack([logits_of(300, seed) for seed in range(len(rows))])
    expected = [
        definition.sample(
            logits_V,
            row.sampling.temperature,
            row.sampling.top_k,
            row.sampling.top_p,
            row.sampling.min_p,
            row.seed,
            row.position + 2,
        )
        for row, logits_V in zip(rows, logits_OV, strict=True)
    ]
    sampler = Sampler(Cpu(num_threads))
    assert sample(sampler, logits_OV, rows).tolist() == expected
    assert sample(sampler, logits_OV[::-1].copy(), rows[::-1]).tolist() == expected[::-1]
    assert len(set(expected)) > 20


def kept_weights(logits_V: F32, params: SamplingParams) -> F32:
    """What each token weighs after the filters of the definition (V,)."""
    scaled_V = logits_V / np.float32(params.temperature)
    weights_V, ids = definition.weights(scaled_V), np.arange(len(logits_V))
    if params.min_p > 0:
        ids = ids[weights_V >= definition.fraction(params.min_p, int(weights_V.max()))]
    if params.top_k > 0:
        ids = definition.largest(scaled_V, ids, params.top_k)
    if params.top_p < 1:
        ids = definition.nucleus(scaled_V, weights_V, ids, params.top_p)
    kept_V = np.zeros(len(logits_V), np.float32)
    kept_V[ids] = weights_V[ids]
    return kept_V


def chi_square(tokens: I64, kept_V: F32) -> tuple[float, int]:
    """The statistic of draws against the kept probabilities, and its degrees of freedom."""
    counts, used = np.bincount(tokens, minlength=len(kept_V)), kept_V > 0
    expected = kept_V[used] / kept_V.sum() * len(tokens)
    return float(((counts[used] - expected) ** 2 / expected).sum()), int(used.sum()) - 1


@pytest.mark.parametrize("params", [PARAMS[0], PARAMS[2], PARAMS[5], PARAMS[6], PARAMS[7]])
def test_draws_follow_the_distribution(params: SamplingParams) -> None:
    logits_V = logits_of(50, seed=3, spread=1.0)
    kept_V, tokens = kept_weights(logits_V, params), draws(logits_V, params, 5, range(2, 6002))
    assert (kept_V[tokens] > 0).all()
    statistic, freedom = chi_square(tokens, kept_V)
    # Mean `freedom`, standard deviation sqrt(2 * freedom): five deviations are never seen with a fixed, fair seed.
    limit = freedom + 5 * np.sqrt(2 * freedom)
    assert statistic < limit
    assert chi_square(np.minimum(tokens + 1, 49), kept_V)[0] > limit, "the token after the right one is seen"


def test_a_token_depends_on_seed_and_position_and_on_nothing_else() -> None:
    logits_V, params = logits_of(300, seed=1), SamplingParams(temperature=1.2, top_p=0.95)
    alone = draws(logits_V, params, 7, range(2, 42)).tolist()
    busy = Sampler(Cpu(1))
    mixed = []
    for position in reversed(range(2, 42)):
        sample(busy, logits_of(1 + 13 * position, seed=position)[None], [row_of(PARAMS[position % 8], position, 3)])
        mixed += sample(busy, logits_V[None], [row_of(params, 7, position)]).tolist()
    assert mixed[::-1] == alone
    assert alone != draws(logits_V, params, 8, range(2, 42)).tolist()
    assert len(set(alone)) > 5


def test_the_logits_are_left_as_they_are() -> None:
    logits_OV = np.stack([logits_of(300, seed=1)] * len(PARAMS))
    logits_OV.flags.writeable = False
    sample(Sampler(Cpu(1)), logits_OV, [row_of(params, 0, 2) for params in PARAMS])


def test_a_masked_token_is_never_drawn() -> None:
    logits_V = np.full(20, -np.inf, np.float32)
    logits_V[[4, 11]] = 1.0
    assert set(draws(logits_V, SamplingParams(), 0, range(2, 52)).tolist()) == {4, 11}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_numbers_are_an_error(value: float) -> None:
    logits_OV = np.zeros((3, 20), np.float32)
    logits_OV[1, 3] = logits_OV[2, 0] = value
    rows = [row_of(SamplingParams(temperature=0), 0, position) for position in (11, 12, 13)]
    with pytest.raises(NumericalError, match="position 12"):
        sample(Sampler(Cpu(2)), logits_OV, rows)

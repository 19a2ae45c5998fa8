"""Log-probabilities of a step: whoever asks gets what the definition says, from every number of tensor ranks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pytest

from tests.engine.test_runner import NextToken
from tinycluster.engine.request import NO_TOKEN, Row, SamplingParams, StepPlan, StepResult, TokenLogprobs
from tinycluster.engine.runner import Runner
from tinycluster.engine.sampler import Sampler
from tinycluster.kernels import logprobs_reference as definition
from tinycluster.kernels._cpu import Cpu
from tinycluster.kernels.program import F32, Batch, NumericalError
from tinycluster.parallel.local import LocalGroup

V = 37
GREEDY = SamplingParams(temperature=0)


@dataclass
class RandomLogits(NextToken):
    """Logits that depend on the token and its position."""

    bad_token: int = -1

    def run(self, batch: Batch) -> F32:
        pairs = zip(batch.tokens[batch.output_rows], batch.positions[batch.output_rows], strict=True)
        logits = [self.of(int(token), int(position)) for token, position in pairs]
        return np.array(logits, np.float32).reshape(-1, V)

    def of(self, token: int, position: int) -> F32:
        if token == self.bad_token:
            return np.full(V, np.nan, np.float32)
        return np.random.default_rng([token, position]).standard_normal(V).astype(np.float32).round(1)


def told(token: int, position: int, following: int, num_top: int) -> TokenLogprobs:
    """By definition, of the token that follows `token` at `position`."""
    logprob, rank, top = definition.logprobs(RandomLogits().of(token, position), following, num_top)
    return TokenLogprobs(float(logprob), rank, tuple((best, float(value)) for best, value in top))


def asking(request_id: int, logprobs: int | None, *, prompt: int | None = None) -> Row:
    """A row that decodes at position 9."""
    sampling = replace(GREEDY, logprobs=logprobs, prompt_logprobs=prompt)
    return Row(request_id, (request_id + 20,), 9, (0,), 1, sampling, 0, 5)


def run(num_ranks: int, *plans: StepPlan) -> list[StepResult]:
    group = LocalGroup(num_ranks)

    def steps(rank: int) -> list[StepResult | None]:
        runner = Runner(RandomLogits(), Sampler(Cpu(1)), group.communicator(rank))
        return [runner.run(plan) for plan in plans]

    with ThreadPoolExecutor(num_ranks) as threads:
        first, *others = list(threads.map(steps, range(num_ranks)))
    assert all(result is None for other in others for result in other)
    return [result for result in first if result is not None]


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_each_request_is_told_what_it_asks_for_and_the_others_nothing(num_ranks: int) -> None:
    rows = [asking(0, 3), asking(1, None), asking(2, 0), asking(3, 20), asking(4, None, prompt=2)]
    drafts = asking(5, 2)._replace(tokens=(4, 9, 11), num_samples=3)
    (result,) = run(num_ranks, StepPlan(0, (*rows, drafts)))
    tokens = [(20, 9), (21, 9), (22, 9), (23, 9), (24, 9), (4, 9), (9, 10), (11, 11)]
    asked = [3, None, 0, 20, None, 2, 2, 2]
    for sample, (token, position), num_top in zip(result.samples, tokens, asked, strict=True):
        greedy = int(RandomLogits().of(token, position).argmax())
        assert sample.token == greedy
        assert sample.logprobs == (None if num_top is None else told(token, position, greedy, num_top))
    assert result.prompt_logprobs == ()


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_a_prompt_is_told_in_chunks_and_its_first_generated_token_like_any_other(num_ranks: int) -> None:
    prompt = (7, 8, 9, 10, 11, 12, 13)
    sampling = replace(GREEDY, prompt_logprobs=2, logprobs=1)

    def chunk(first: int, end: int) -> Row:
        is_last = end == len(prompt)
        row = Row(3, prompt[first:end], first, (0,), int(is_last), sampling, 0, len(prompt))
        return row if is_last else row._replace(next_token=prompt[end])

    other = asking(1, None)
    results = run(
        num_ranks, StepPlan(0, (chunk(0, 3), other)), StepPlan(1, (other, chunk(3, 4))), StepPlan(2, (chunk(4, 7),))
    )
    reported = [reported for result in results for reported in result.prompt_logprobs]
    assert [(one.request_id, one.first, len(one.tokens)) for one in reported] == [(3, 1, 3), (3, 4, 1), (3, 5, 2)]
    expected = [told(prompt[index], index, prompt[index + 1], 2) for index in range(6)]
    assert [tokens for one in reported for tokens in one.tokens] == expected
    (last,) = results[2].samples
    assert last.logprobs == told(13, 6, last.token, 1)


def test_probabilities_are_the_models_whatever_the_rules_are() -> None:
    row = asking(0, 1)
    best = int(RandomLogits().of(20, 9).argmax())
    ruled = replace(row.sampling, bad_words=((best,),), temperature=0.3)
    (result,) = run(1, StepPlan(0, (row._replace(sampling=ruled, history=(1,) * 9),)))
    (sample,) = result.samples
    assert sample.token != best
    assert sample.logprobs == told(20, 9, sample.token, 1)


def test_more_than_the_vocabulary_is_the_vocabulary() -> None:
    (result,) = run(2, StepPlan(0, (asking(0, 100), asking(1, 1))))
    assert [len(sample.logprobs.top) for sample in result.samples if sample.logprobs] == [V, 1]


def test_a_request_that_has_no_token_left_is_no_fault() -> None:
    row = asking(0, 1)
    nothing = replace(row.sampling, allowed_token_ids=(4,), bad_words=((4,),))
    (result,) = run(1, StepPlan(0, (row._replace(sampling=nothing, history=(1,) * 9),)))
    assert result.samples[0].token == NO_TOKEN


def test_a_prompt_whose_logits_are_not_numbers_is_an_error() -> None:
    runner = Runner(RandomLogits(bad_token=7), Sampler(Cpu(1)), LocalGroup(1).communicator(0))
    chunk = Row(3, (7, 8), 0, (0,), 0, replace(GREEDY, prompt_logprobs=0), 0, 9, next_token=2)
    with pytest.raises(NumericalError, match="log-probability"):
        runner.run(StepPlan(0, (chunk,)))

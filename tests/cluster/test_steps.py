"""What ranks answer to steps that a scheduler may plan: drafts, and blocks that become copies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cluster.engines import GREEDY, SAMPLED, prompt_of
from tests.cluster.hand_planned import row, run_steps, steps_of
from tests.parity.tiny_tokenizer import EOS_TOKEN_ID
from tinycluster.engine.request import (
    PENDING,
    Row,
    SampledToken,
    SamplingParams,
    StepPlan,
    StepResult,
    TokenLogprobs,
)
from tinycluster.engine.rules_reference import Context, next_token
from tinycluster.kernels.logprobs_reference import logprobs

BLOCKS = (4, 1, 6)
PROMPT = prompt_of(21)


def decoded(model: Path, sampling: SamplingParams, count: int) -> list[SampledToken]:
    """Plain decoding, one token per step: a run for every token, which knows those before it."""
    known = list(PROMPT)
    steps = steps_of(row(known, 0, BLOCKS, sampling))
    samples: list[SampledToken] = []
    while len(samples) < count:
        (sample,) = run_steps(model, steps)[-1].samples
        samples.append(sample)
        steps += [StepPlan(len(steps), (row([sample.token], len(known), BLOCKS, sampling),))]
        known.append(sample.token)
    return samples


BIASED = replace(
    SAMPLED, logit_bias=((17, 4.0), (EOS_TOKEN_ID, 9.0)), min_tokens=5, allowed_token_ids=tuple(range(200)), logprobs=2
)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED, BIASED], ids=["greedy", "sampled", "biased"])
def test_verified_drafts_give_the_tokens_and_logits_of_plain_decoding(
    tiny_model: Path, sampling: SamplingParams
) -> None:
    plain = decoded(tiny_model, sampling, 8)
    tokens = [sample.token for sample in plain]
    wrong = (tokens[3] + 1) % 300
    drafts = [
        row(PROMPT, 0, BLOCKS, sampling),
        row([*tokens[:3], wrong, 5], 21, BLOCKS, sampling, num_samples=5),
        row(tokens[3:7], 24, BLOCKS, sampling, num_samples=4),
    ]
    other = row(prompt_of(3), 0, (2,), sampling, request_id=2)
    for mesh in ({"tensor": 1}, {"tensor": 2}, {"tensor": 3, "pipeline": 2}):
        first, second, third = run_steps(tiny_model, steps_of(drafts[0], (drafts[1], other), drafts[2]), mesh=mesh)
        assert (*first.samples, *second.samples[:3], *third.samples) == tuple(plain)
        assert len(second.samples) == 6
        assert second.samples[3] != plain[4], "what follows a wrong draft is another answer"


@pytest.mark.parametrize("dtype", ["f32", "q8"])
def test_a_request_goes_on_in_copies_of_anothers_blocks(tiny_model: Path, dtype: str) -> None:
    """Position 16 is the first of the second block, so the fork begins with four positions in it."""
    kv_cache, mesh = {"memory": "4MiB", "dtype": dtype}, {"tensor": 2, "pipeline": 2}
    fork = row([77], 20, (4, 5), GREEDY, request_id=2)
    alone = steps_of(row(PROMPT[:20], 0, (0, 3), GREEDY), fork._replace(blocks=(0, 3)))
    (expected,) = run_steps(tiny_model, alone, kv_cache=kv_cache)[-1].samples

    def forked(copies: tuple[tuple[int, int], ...]) -> list[SampledToken]:
        first, second, third = steps_of(
            row(PROMPT[:20], 0, (4, 1), GREEDY),
            row([PROMPT[20]], 20, (4, 1), GREEDY),
            [row([9], 21, (4, 1), GREEDY), fork],
        )
        third = StepPlan(2, third.rows, copies)
        return [*run_steps(tiny_model, [first, second, third], kv_cache=kv_cache, mesh=mesh)[-1].samples]

    assert forked(((1, 5),))[1] == expected
    assert forked(((1, 8), (8, 5)))[1] == expected
    assert forked(((5, 1),))[1] != expected


RULED = replace(
    SAMPLED,
    repetition_penalty=1.4,
    frequency_penalty=0.6,
    presence_penalty=0.3,
    bad_words=((5,), (9, 11)),
    logit_bias=((17, 4.0), (40, -100.0)),
    min_tokens=3,
)


def test_rules_give_the_defined_tokens_on_every_mesh_while_the_driver_does_not_know_them_yet(tiny_model: Path) -> None:
    """Two requests, so that the rows change ranks; the one with rules then begins anew, with most of it computed."""
    plain, prompt = prompt_of(9), tuple(PROMPT)

    def ruled(**fields: Any) -> Row:
        return row(fields.pop("tokens", [PENDING]), fields.pop("position"), BLOCKS, RULED, **fields)

    def other(position: int) -> Row:
        return row(plain if position == 0 else [PENDING], position, (2, 3), GREEDY, request_id=0)

    steps = steps_of(
        ruled(tokens=prompt[:8], position=0, num_samples=0, history=()),
        (ruled(tokens=prompt[8:], position=8), other(0)),
        *((ruled(position=21 + index), other(9 + index)) for index in range(3)),
        (other(12), ruled(position=24)),
    )
    (expected,) = [samples_of(1, run_steps(tiny_model, steps))]
    known = list(prompt)
    for sample in expected:
        assert sample.logits is not None
        logits_V = np.frombuffer(sample.logits, np.float32)
        context = Context(known, 21, end_tokens=(EOS_TOKEN_ID,))
        assert sample.token == next_token(logits_V, RULED, 7, context)
        known.append(sample.token)
    again = ruled(tokens=known[22:25], position=22, history=tuple(known[:22]))
    resumed = [*steps[:-1], StepPlan(9, (again,), ended=(1,))]
    for tensor in (1, 2, 3):
        assert samples_of(1, run_steps(tiny_model, steps, mesh={"tensor": tensor})) == expected
        assert samples_of(1, run_steps(tiny_model, resumed, mesh={"tensor": tensor})) == expected


def samples_of(request_id: int, results: list[StepResult]) -> list[SampledToken]:
    return [sample for result in results for sample in result.samples if sample.request_id == request_id]


def test_prompts_are_told_the_log_probabilities_of_their_own_logits_on_every_mesh(tiny_model: Path) -> None:
    """The logits are those of decoding the same tokens one after the other."""
    one_by_one = [row([token], index, BLOCKS, GREEDY) for index, token in enumerate(PROMPT)]
    logits = [samples_of(1, [result])[0].logits for result in run_steps(tiny_model, steps_of(*one_by_one))]
    expected = []
    for content, token in zip(logits, PROMPT[1:], strict=False):
        assert content is not None
        logprob, rank, top = logprobs(np.frombuffer(content, np.float32), token, 3)
        expected.append(TokenLogprobs(float(logprob), rank, tuple((best, float(value)) for best, value in top)))
    sampling = SamplingParams(temperature=0, prompt_logprobs=3)
    chunks = [(0, 8), (8, 9), (9, 21)]
    reported = [row(PROMPT[a:b], a, BLOCKS, sampling, num_samples=int(b == 21)) for a, b in chunks]
    steps = steps_of(
        *[own._replace(next_token=[*PROMPT, None][end]) for own, (_, end) in zip(reported, chunks, strict=True)]
    )
    for mesh in ({"tensor": 1}, {"tensor": 2}, {"tensor": 3, "pipeline": 2}):
        told = [one for result in run_steps(tiny_model, steps, mesh=mesh) for one in result.prompt_logprobs]
        assert [one.first for one in told] == [1, 9, 10]
        assert [tokens for one in told for tokens in one.tokens] == expected

"""What ranks answer to steps that a scheduler may plan: drafts, and blocks that become copies."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.engines import GREEDY, SAMPLED, prompt_of
from tests.cluster.hand_planned import row, run_steps, steps_of
from tinycluster.engine.request import SampledToken, SamplingParams, StepPlan

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


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
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

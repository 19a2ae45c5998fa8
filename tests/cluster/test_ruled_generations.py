"""Requests with rules and log-probabilities through the whole engine: what is defined, on every mesh and schedule."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cluster.engines import SAMPLED, engine_for, prompt_of
from tests.parity.tiny_tokenizer import EOS_TOKEN_ID
from tinycluster.cluster import local
from tinycluster.cluster.driver import Engine
from tinycluster.cluster.local import LocalRanks
from tinycluster.cluster.messages import Message, decode, encode
from tinycluster.cluster.plan_codec import PlanDecoder, PlanEncoder
from tinycluster.cluster.ranks import Deliver
from tinycluster.engine.request import RequestOptions, SamplingParams, StepPlan, TokenLogprobs
from tinycluster.engine.rules_reference import Context, next_token
from tinycluster.kernels import logprobs_reference

PROMPTS = [prompt_of(1), prompt_of(37, first=5), prompt_of(70, first=11)]
RULED = replace(
    SAMPLED,
    ignore_eos=False,
    max_tokens=14,
    min_tokens=9,
    repetition_penalty=1.4,
    frequency_penalty=0.6,
    presence_penalty=0.3,
    bad_words=((5,), (9, 11)),
    logit_bias=((EOS_TOKEN_ID, 9.0), (17, 3.0), (40, -100.0)),
    allowed_token_ids=tuple(range(0, 307, 2)) + tuple(range(1, 60, 2)),
    logprobs=3,
    prompt_logprobs=2,
)


@dataclass
class Told:
    tokens: list[int] = field(default_factory=list)
    logits: list[bytes] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)


class Steps:
    """A grammar of which the n-th token is n modulo 3, and whose text ends after the seventh."""

    def __init__(self) -> None:
        self.count = 0

    def start(self) -> Steps:
        return Steps()

    def mask(self) -> bytes:
        return mask_of(self.count)

    def accept(self, token_id: int) -> None:
        assert token_id % 3 == self.count % 3
        self.count += 1


def mask_of(count: int) -> bytes:
    return np.packbits([count < 7 and token % 3 == count % 3 for token in range(307)], bitorder="little").tobytes()


def told_by(
    engine: Engine,
    sampling: SamplingParams = RULED,
    prompts: Sequence[Sequence[int]] = PROMPTS,
    grammar: Steps | None = None,
) -> list[Told]:
    options = RequestOptions(grammar=grammar)
    generations = [engine.submit(prompt, sampling, options) for prompt in prompts]
    out = []
    for generation in generations:
        told = Told()
        for delta in generation:
            told.tokens += delta.token_ids
            told.logits += delta.logits
            told.logprobs += delta.logprobs
            told.prompt_logprobs += delta.prompt_logprobs
        out.append(told)
    return out


def told_of(logits: bytes, token: int, num_top: int) -> TokenLogprobs:
    logprob, rank, top = logprobs_reference.logprobs(np.frombuffer(logits, np.float32), token, num_top)
    return TokenLogprobs(float(logprob), rank, tuple((best, float(value)) for best, value in top))


@pytest.fixture(scope="module")
def expected(tiny_model: Path) -> list[Told]:
    with closing(engine_for(tiny_model)) as engine:
        return told_by(engine)


def test_every_token_is_the_one_that_the_rules_define_from_its_logits(expected: list[Told]) -> None:
    assert RULED.seed is not None
    for prompt, told in zip(PROMPTS, expected, strict=True):
        assert RULED.min_tokens <= len(told.tokens) <= 14
        for index, (token, logits) in enumerate(zip(told.tokens, told.logits, strict=True)):
            context = Context([*prompt, *told.tokens[:index]], len(prompt), end_tokens=(EOS_TOKEN_ID,))
            assert token == next_token(np.frombuffer(logits, np.float32), RULED, RULED.seed, context)
        pairs = zip(told.logits, told.tokens, strict=True)
        assert told.logprobs == [told_of(logits, token, 3) for logits, token in pairs]
        assert len(told.prompt_logprobs) == len(prompt) - 1
    # The end token is likely, and comes as soon as it may.
    assert [told.tokens[-1] for told in expected].count(EOS_TOKEN_ID) >= 2


@pytest.mark.parametrize(
    "changes",
    [
        {"mesh": {"tensor": 3}},
        {"mesh": {"tensor": 2, "pipeline": 2}},
        {"limits": {"max_model_len": 128, "step_tokens": 7}, "mesh": {"tensor": 2}},
    ],
    ids=["tensor", "pipeline", "chunks"],
)
def test_the_mesh_and_the_schedule_change_nothing(
    tiny_model: Path, expected: list[Told], changes: dict[str, Any]
) -> None:
    with closing(engine_for(tiny_model, **changes)) as engine:
        assert told_by(engine) == expected


def test_preempted_requests_go_on_with_their_histories(tiny_model: Path) -> None:
    prompts, sampling = (
        [prompt_of(14, first=index) for index in range(4)],
        replace(RULED, ignore_eos=True, max_tokens=40),
    )
    with closing(engine_for(tiny_model)) as roomy:
        expected = told_by(roomy, sampling, prompts)
    limits, kv_cache = {"max_model_len": 64}, {"memory": "50KiB"}
    with closing(engine_for(tiny_model, limits=limits, kv_cache=kv_cache, mesh={"tensor": 2})) as cramped:
        assert told_by(cramped, sampling, prompts) == expected
        assert cramped.num_preemptions > 0


def test_what_the_prefix_cache_knows_changes_nothing(tiny_model: Path, expected: list[Told]) -> None:
    """A prompt that is found in the cache is never seen by the ranks; they are told it for its rules."""
    sampling = replace(RULED, prompt_logprobs=None)
    with closing(engine_for(tiny_model, mesh={"tensor": 2})) as engine:
        for _ in range(2):
            again = told_by(engine, sampling)
            assert [replace(told, prompt_logprobs=[]) for told in expected] == again


def test_choices_of_one_prompt_follow_their_own_histories(tiny_model: Path, expected: list[Told]) -> None:
    sampling = replace(RULED, prompt_logprobs=None)
    with closing(engine_for(tiny_model, mesh={"tensor": 2})) as engine:
        choices = [sampling, replace(sampling, seed=8), sampling]
        first, other, third = [
            [token for delta in generation for token in delta.token_ids]
            for generation in engine.submit_choices(PROMPTS[1], choices)
        ]
    assert first == third == expected[1].tokens != other


@pytest.mark.parametrize("mesh", [{"tensor": 3}, {"tensor": 2, "pipeline": 2}])
def test_a_grammar_leaves_the_defined_tokens_and_ends_the_text_where_it_leaves_none(
    tiny_model: Path, mesh: dict[str, int]
) -> None:
    with closing(engine_for(tiny_model, mesh=mesh)) as engine:
        ruled = told_by(engine, replace(RULED, min_tokens=0, ignore_eos=True), grammar=Steps())
    for prompt, told in zip(PROMPTS, ruled, strict=True):
        assert len(told.tokens) == len(told.logits) == 7
        for index, (token, logits) in enumerate(zip(told.tokens, told.logits, strict=True)):
            context = Context([*prompt, *told.tokens[:index]], len(prompt), mask_of(index))
            assert token == next_token(np.frombuffer(logits, np.float32), replace(RULED, min_tokens=0), 7, context)


def test_plans_and_results_say_the_same_after_their_way_between_processes(
    tiny_model: Path, expected: list[Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, decoder, send, deliver = PlanEncoder(), PlanDecoder(), LocalRanks.send, local._deliver

    def coded_send(self: LocalRanks, message: Message) -> None:
        send(self, decoder.decode(encoder.encode(message)) if isinstance(message, StepPlan) else message)

    def coded_deliver(deliver_event: Deliver, rank: int, message: Message) -> None:
        kind, payload = encode(message)
        deliver(deliver_event, rank, decode(kind, memoryview(payload)))

    monkeypatch.setattr(LocalRanks, "send", coded_send)
    monkeypatch.setattr(local, "_deliver", coded_deliver)
    with closing(engine_for(tiny_model, mesh={"tensor": 2})) as engine:
        assert told_by(engine) == expected
        assert [len(told.tokens) for told in told_by(engine, SAMPLED, grammar=Steps())] == [7, 7, 7]

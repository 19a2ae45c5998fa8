"""The rules of requests: the definition against numbers worked out by hand, and the sampler against the definition."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinycluster.engine import rules_reference as definition
from tinycluster.engine.batch import SAMPLED, BatchPacker, Outputs
from tinycluster.engine.request import NO_TOKEN, Row, SamplingParams, StepPlan
from tinycluster.engine.rules_reference import Context
from tinycluster.engine.sampler import Sampler
from tinycluster.kernels._cpu import Cpu
from tinycluster.kernels.program import F32, NumericalError

INF = float("inf")
GREEDY = SamplingParams(temperature=0)
END_TOKENS = (0, 5)


@dataclass(frozen=True)
class Asked:
    """One request that is to sample its next token."""

    logits: tuple[float, ...]
    sampling: SamplingParams
    prompt: tuple[int, ...] = (0,)
    generated: tuple[int, ...] = ()
    mask: bytes | None = None
    seed: int = 0

    @property
    def logits_V(self) -> F32:
        return np.array(self.logits, np.float32)

    @property
    def context(self) -> Context:
        return Context((*self.prompt, *self.generated), len(self.prompt), self.mask, END_TOKENS)

    def defined(self) -> int:
        return definition.next_token(self.logits_V, self.sampling, self.seed, self.context)

    def row(self, request_id: int, start: int, end: int, *, is_first: bool = False) -> Row:
        tokens = self.context.tokens
        history = tokens[:start] if is_first and self.sampling.needs_history else None
        fields = (len(self.prompt), history, self.mask)
        return Row(request_id, tuple(tokens[start:end]), start, (0,), 1, self.sampling, self.seed, *fields)  # type: ignore[arg-type]


def outputs_of(asked: list[Asked], sampler: Sampler, cut: int) -> Outputs:
    """Two steps of requests that a rank gets to know with some of their tokens computed; the first is not sampled."""
    packer = BatchPacker()
    cuts = [min(cut, len(one.context.tokens) - 1) for one in asked]
    starts = [max(0, cut - 1) for cut in cuts]
    first = tuple(one.row(i, starts[i], cuts[i], is_first=True) for i, one in enumerate(asked) if cuts[i] > 0)
    rest = tuple(one.row(i, cuts[i], len(one.context.tokens), is_first=cuts[i] == 0) for i, one in enumerate(asked))
    outputs = Outputs([], np.zeros(0, np.int32))
    for plan in (StepPlan(0, first), StepPlan(1, rest)):
        if plan.rows:
            batch, outputs = packer.pack(plan, {})
            sampler.follow(plan, batch)
    return outputs


def sampled(asked: list[Asked], *, num_threads: int = 1, cut: int = 0) -> list[int]:
    sampler = Sampler(Cpu(num_threads), END_TOKENS)
    outputs = outputs_of(asked, sampler, cut)
    tokens: list[int] = sampler.sample(np.stack([one.logits_V for one in asked]), outputs).tolist()
    return tokens


def ruled(logits: list[float], sampling: SamplingParams, prompt: str = "0", generated: str = "", **context: Any) -> Any:
    """The definition's logits; tokens are written as digits."""
    tokens = tuple(map(int, prompt + generated))
    out_V = definition.ruled(np.array(logits, np.float32), sampling, Context(tokens, len(prompt), **context))
    return out_V.tolist()


def test_the_definition_of_each_rule_is_what_is_worked_out_by_hand() -> None:
    x = [4.0, -4.0, 1.0, 0.0, 2.0, -1.0]
    of = SamplingParams
    assert ruled(x, of()) == x
    assert ruled(x, of(), mask=bytes([0b101001])) == [4.0, -INF, -INF, 0.0, -INF, -1.0]
    assert ruled(x, of(allowed_token_ids=(1, 4))) == [-INF, -4.0, -INF, -INF, 2.0, -INF]
    assert ruled(x, of(logit_bias=((1, 5.5), (4, -100.0)))) == [4.0, 1.5, 1.0, 0.0, -98.0, -1.0]
    assert ruled(x, of(bad_words=((2,), (1, 3, 0), (3, 1), (5, 4))), "13", "3") == [4.0, -INF, -INF, 0.0, 2.0, -1.0]
    assert ruled(x, of(bad_words=((1, 3, 0), (3, 1))), "1", "3") == [-INF, -INF, 1.0, 0.0, 2.0, -1.0]
    at_least = of(min_tokens=2, stop_token_ids=(4,), ignore_eos=True)
    for generated, expected in (("", True), ("1", True), ("11", False)):
        ended = ruled(x, at_least, "01", generated, end_tokens=(0, 5))
        assert (ended == [-INF, -4.0, 1.0, 0.0, -INF, -INF]) == expected == (ended != x)
    assert ruled(x, of(repetition_penalty=2.0), "01", "15") == [2.0, -8.0, 1.0, 0.0, 2.0, -2.0]
    assert ruled(x, of(frequency_penalty=0.5), "00", "1121") == [4.0, -5.5, 0.5, 0.0, 2.0, -1.0]
    assert ruled(x, of(presence_penalty=-0.5), "00", "1121") == [4.0, -3.5, 1.5, 0.0, 2.0, -1.0]


def test_biases_come_before_penalties_and_nothing_brings_a_forbidden_token_back() -> None:
    biased = SamplingParams(logit_bias=((0, 6.0),), repetition_penalty=2.0, frequency_penalty=1.0, presence_penalty=0.5)
    assert ruled([-2.0, 1.0], biased, "1", "00") == [(-2.0 + 6.0) / 2 - 2.0 - 0.5, 0.5]
    forbidden = replace(biased, bad_words=((0,),), frequency_penalty=-2.0)
    assert ruled([-2.0, 1.0], forbidden, "1", "00") == [-INF, 0.5]
    assert ruled([3e38, 1.0], SamplingParams(repetition_penalty=2**-9), "01") == [float(definition.MOST), 512.0]


V = 12
values = st.one_of(st.sampled_from([0.0, 1.0, 1.5, -1.0, -INF]), st.floats(-30, 30, width=32))
ids = st.integers(0, V - 1)
penalties = st.sampled_from([0.0, 0.0, 0.3, -0.7, 2.0])
samplings = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    top_k=st.sampled_from([0, 3]),
    top_p=st.sampled_from([1.0, 0.8]),
    presence_penalty=penalties,
    frequency_penalty=penalties,
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.3, 0.5]),
    logit_bias=st.lists(st.tuples(ids, st.floats(-9, 9)), max_size=3).map(tuple),
    min_tokens=st.integers(0, 3),
    stop_token_ids=st.lists(ids, max_size=2).map(tuple),
    bad_words=st.lists(st.lists(ids, min_size=1, max_size=3).map(tuple), max_size=4).map(tuple),
    allowed_token_ids=st.none() | st.lists(ids, min_size=1, max_size=6).map(tuple),
)
requests = st.builds(
    Asked,
    st.lists(values, min_size=V, max_size=V).map(tuple),
    st.just(GREEDY) | st.just(SamplingParams()) | samplings,
    st.lists(ids, min_size=1, max_size=6).map(tuple),
    st.lists(ids, max_size=6).map(tuple),
    st.none() | st.none() | st.binary(min_size=2, max_size=2),
    st.integers(0, 2**64 - 1),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(requests, min_size=1, max_size=4), st.integers(1, 2), st.integers(0, 9))
def test_every_request_gets_the_token_that_its_own_rules_define(asked: list[Asked], num_threads: int, cut: int) -> None:
    try:
        expected = [one.defined() for one in asked]
    except NumericalError:
        with pytest.raises(NumericalError):
            sampled(asked, num_threads=num_threads, cut=cut)
        return
    assert sampled(asked, num_threads=num_threads, cut=cut) == expected


RULED = SamplingParams(
    temperature=0.9,
    presence_penalty=1.0,
    frequency_penalty=0.5,
    repetition_penalty=1.5,
    logit_bias=((3, 2.0), (7, -3.0)),
    min_tokens=9,
    stop_token_ids=(9,),
    bad_words=((1, 2), (4,)),
    allowed_token_ids=tuple(range(400)),
)
LARGE_V = 517


def many_requests(sampling: SamplingParams) -> list[Asked]:
    rng = np.random.default_rng(3)
    return [
        Asked(tuple(rng.normal(size=LARGE_V)), sampling, (2, 3, 1), (*rng.integers(0, 6, 4).tolist(), 1), seed=seed)
        for seed in range(60)
    ]


@pytest.mark.parametrize("num_threads", [1, 3])
def test_all_rules_together_over_a_larger_vocabulary_and_none_is_without_effect(num_threads: int) -> None:
    asked = [
        replace(one, mask=np.packbits(np.arange(LARGE_V) % 7 > 0, bitorder="little").tobytes())
        for one in many_requests(RULED)
    ]
    tokens = sampled(asked, num_threads=num_threads, cut=4)
    assert tokens == [one.defined() for one in asked]
    assert tokens != [replace(one, mask=None).defined() for one in asked]


@pytest.mark.parametrize(
    "field",
    [
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "logit_bias",
        "min_tokens",
        "stop_token_ids",
        "bad_words",
        "allowed_token_ids",
    ],
)
def test_without_one_of_the_rules_the_tokens_are_others(field: str) -> None:
    # Few likely tokens, so that sixty draws meet every rule.
    peaked = [replace(one, logits=(*(4.0 + one.logits_V[:10]), *one.logits_V[10:])) for one in many_requests(RULED)]
    lacking = replace(RULED, **{field: getattr(SamplingParams(), field)})
    assert sampled(peaked) == [one.defined() for one in peaked]
    assert sampled(peaked) != [replace(one, sampling=lacking).defined() for one in peaked]


def test_where_the_rules_leave_no_token_the_answer_says_so_and_the_other_rows_are_sampled() -> None:
    logits = (0.0, 1.0, 3.0, 2.0) * 2
    nothing = replace(GREEDY, allowed_token_ids=(2,), bad_words=((2,),))
    asked = [
        Asked(logits, GREEDY),
        Asked(logits, nothing),
        Asked(logits, replace(GREEDY, bad_words=((2,), (6,)))),
        Asked(logits, SamplingParams(), mask=b"\0"),
        Asked(logits, GREEDY, mask=b"\x08"),
    ]
    assert sampled(asked) == [one.defined() for one in asked] == [2, NO_TOKEN, 3, NO_TOKEN, 3]


@pytest.mark.parametrize("value", [np.nan, INF])
def test_logits_of_the_model_that_are_not_numbers_are_an_error_though_a_rule_would_hide_them(value: float) -> None:
    asked = [Asked((1.0, value, 0.0), replace(GREEDY, bad_words=((1,),)))]
    with pytest.raises(NumericalError):
        asked[0].defined()
    with pytest.raises(NumericalError, match="position 1 "):
        sampled(asked)


def test_an_ended_request_is_forgotten_and_its_number_may_come_again() -> None:
    packer, sampler = BatchPacker(), Sampler(Cpu(1), END_TOKENS)
    logits_OV = np.array([[0.0, 5.0, 4.0]], np.float32)
    first = Row(1, (1,), 0, (0,), 1, replace(GREEDY, repetition_penalty=2.0), 0, 1, ())
    second = Row(1, (0,), 2, (0,), 1, replace(GREEDY, presence_penalty=2.0), 0, 1, (0, 0))
    for plan, token in ((StepPlan(0, (first,)), 2), (StepPlan(1, (second,), ended=(1,)), 1)):
        batch, outputs = packer.pack(plan, {})
        sampler.follow(plan, batch)
        assert sampler.sample(logits_OV, outputs).tolist() == [token]


def test_the_prompts_own_tokens_are_neither_sampled_nor_checked() -> None:
    logits_OV = np.array([[np.nan, 0.0], [0.0, 1.0], [2.0, 1.0]], np.float32)
    rows = [Row(1, (0, 0, 0), 0, (0,), 1, replace(GREEDY, prompt_logprobs=0), 0)] * 3
    outputs = Outputs(rows, np.array([1, 2, 3], np.int32), np.array([1, SAMPLED, 0], np.int32))
    assert Sampler(Cpu(1)).sample(logits_OV, outputs).tolist() == [1, 1, 0]

"""Plans survive their way to the ranks, though most of a request is sent once; anything else is a ProtocolError."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinycluster.cluster.messages import ProtocolError
from tinycluster.cluster.plan_codec import GENERATION_PLANS, PlanDecoder, PlanEncoder
from tinycluster.engine.request import PENDING, Row, SamplingParams, StepPlan

CHOSEN = SamplingParams(0.8, 40, 0.95, 0.05)
RULED = replace(
    CHOSEN,
    presence_penalty=0.1,
    frequency_penalty=-2.0,
    repetition_penalty=1.3,
    min_tokens=7,
    stop_token_ids=(9, 3),
    logit_bias=((0, -100.0), (49151, 0.1)),
    bad_words=((1,), (2, 3, 4)),
    allowed_token_ids=(4, 5),
    logprobs=0,
    prompt_logprobs=20,
)
PLAN = StepPlan(
    2**40,
    (
        Row(2**60, (1, 2, PENDING), 70000, (5, 4, 2**31 - 1), 1, CHOSEN, 2**64 - 1, 7),
        Row(0, (49151,), 0, (), 0, SamplingParams(return_logits_digest=True), 0),
        Row(3, (4, 5, 6), 9, (8,), 3, CHOSEN, 0, 2**32 - 1),
        Row(4, (4, 5), 3, (9, 2), 1, RULED, 0, 4, history=(7, 8, 9), mask=b"\0\x80", next_token=0),
        Row(5, (4,), 0, (0,), 1, replace(CHOSEN, allowed_token_ids=()), 0, history=(), mask=b""),
    ),
    copies=((8, 9), (0, 2**31 - 1)),
    ended=(0, 2**60 + 1),
)


def decoding(step_id: int, request_id: int, blocks: tuple[int, ...]) -> StepPlan:
    return StepPlan(step_id, (Row(request_id, (PENDING,), step_id, blocks, True, CHOSEN, request_id),))


def test_a_plan_survives_its_way() -> None:
    for plan in (PLAN, StepPlan(0, ())):
        assert PlanDecoder().decode(PlanEncoder().encode(plan)) == plan


def test_a_decoding_request_costs_few_bytes_however_long_it_is() -> None:
    encoder, decoder = PlanEncoder(), PlanDecoder()
    blocks = tuple(range(1000))
    sizes = []
    for step_id in range(3):
        plan = decoding(step_id, 7, blocks + tuple(range(2000, 2000 + step_id // 2)))
        payload = encoder.encode(plan)
        assert decoder.decode(payload) == plan
        sizes.append(len(payload))
    assert sizes[0] > 4000
    assert (sizes[1], sizes[2]) == (45, 49)


def test_what_is_rare_costs_only_the_plans_that_have_it() -> None:
    encoder = PlanEncoder()
    encoder.encode(decoding(0, 7, (1,)))
    (plain,) = decoding(1, 7, (1,)).rows
    rare = [
        replace(decoding(1, 7, (1,)), copies=((1, 2),)),
        replace(decoding(1, 7, (1,)), ended=(9,)),
        StepPlan(1, (plain._replace(tokens=(1, 2), num_samples=2),)),
        StepPlan(1, (plain._replace(history=(5,)),)),
        StepPlan(1, (plain._replace(mask=b"\1"),)),
        StepPlan(1, (plain._replace(next_token=0),)),
    ]
    for plan in rare:
        assert len(encoder.encode(plan)) > 45
    assert len(encoder.encode(decoding(2, 7, (1,)))) == 45


def test_an_ended_request_is_told_anew_with_other_parameters() -> None:
    encoder, decoder = PlanEncoder(), PlanDecoder()
    first = decoding(0, 7, (1, 2))
    (row,) = first.rows
    second = StepPlan(1, (row._replace(sampling=RULED, seed=5, position=1, history=(4,)),), ended=(7,))
    for plan in (first, second, StepPlan(2, second.rows)):
        assert decoder.decode(encoder.encode(plan)) == plan
    kept = replace(second, ended=())
    encoder = PlanEncoder()
    encoder.encode(first)
    assert PlanDecoder().decode(PlanEncoder().encode(kept)) == kept
    with pytest.raises(ProtocolError, match="without describing it"):
        PlanDecoder().decode(encoder.encode(kept))


def test_a_request_that_lost_its_blocks_is_told_anew() -> None:
    encoder, decoder = PlanEncoder(), PlanDecoder()
    for step_id, blocks in enumerate([(1, 2, 3), (1, 2, 3, 4), (1, 2), (9,), (9, 1), ()]):
        plan = decoding(step_id, 7, blocks)
        assert decoder.decode(encoder.encode(plan)) == plan


tokens = st.lists(st.integers(0, 2**31 - 1), max_size=3).map(tuple)
floats = st.floats(allow_nan=False)
none_or = st.one_of(st.none(), st.integers(0, 20))
samplings = st.builds(
    SamplingParams,
    presence_penalty=floats,
    frequency_penalty=floats,
    repetition_penalty=floats,
    logit_bias=st.lists(st.tuples(st.integers(0, 9), floats), max_size=3).map(tuple),
    min_tokens=st.integers(1, 2**31 - 1),
    stop_token_ids=tokens,
    bad_words=st.lists(tokens.filter(len), max_size=3).map(tuple),
    allowed_token_ids=st.one_of(st.none(), tokens),
    logprobs=none_or,
    prompt_logprobs=none_or,
)
rows = st.builds(
    lambda request_id, tokens, blocks, sampling, num_samples, history, mask, next_token: Row(
        request_id,
        tokens,
        len(history or ()),
        blocks,
        min(num_samples, len(tokens)),
        sampling,
        request_id,
        request_id + 1,
        history,
        mask,
        next_token,
    ),
    st.integers(0, 2),
    tokens.filter(len),
    tokens,
    st.sampled_from([CHOSEN, RULED]) | samplings,
    st.integers(0, 3),
    st.none() | tokens,
    st.none() | st.binary(max_size=3),
    st.none() | st.integers(0, 9),
)
plans = st.builds(
    StepPlan,
    st.integers(0, 2**64 - 1),
    st.lists(rows, max_size=3, unique_by=lambda row: row.request_id).map(tuple),
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=2).map(tuple),
    st.lists(st.integers(0, 2), max_size=2).map(tuple),
)


def as_known(plans: list[StepPlan]) -> list[StepPlan]:
    """The plans with each request's parameters as of its first row: they can't change while a request lives."""
    known: dict[int, Row] = {}
    out = []
    for plan in plans:
        for request_id in plan.ended:
            known.pop(request_id, None)
        kept = [row._replace(sampling=known.setdefault(row.request_id, row).sampling) for row in plan.rows]
        out.append(replace(plan, rows=tuple(kept)))
    return out


@given(st.lists(plans, max_size=5))
def test_any_plans_survive_their_way_one_after_the_other(plans: list[StepPlan]) -> None:
    encoder, decoder = PlanEncoder(), PlanDecoder()
    for plan in as_known(plans):
        assert decoder.decode(encoder.encode(plan)) == plan


@settings(max_examples=200)
@given(st.lists(plans, min_size=1, max_size=3), st.data())
def test_a_damaged_plan_is_a_plan_or_a_protocol_error(plans: list[StepPlan], data: st.DataObject) -> None:
    encoder, decoder = PlanEncoder(), PlanDecoder()
    *before, last = [encoder.encode(plan) for plan in as_known(plans)]
    for payload in before:
        decoder.decode(payload)
    at = data.draw(st.integers(0, len(last) - 1))
    damaged = last[:at] + data.draw(st.binary(min_size=1, max_size=4)) + last[at + data.draw(st.integers(0, 4)) :]
    try:
        decoder.decode(damaged)
    except ProtocolError:
        return


@given(
    st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 9), max_size=4).map(tuple)), max_size=30),
    st.integers(0, 3 * GENERATION_PLANS),
)
def test_both_ends_forget_at_the_same_plan(steps: list[tuple[int, tuple[int, ...]]], pause: int) -> None:
    encoder, decoder = PlanEncoder(), PlanDecoder()
    plans = [decoding(index, *step) for index, step in enumerate(steps)]
    for plan in [*plans, *[StepPlan(99, ())] * pause, *plans]:
        assert decoder.decode(encoder.encode(plan)) == plan


def test_only_the_parameters_that_choose_a_token_are_sent() -> None:
    params = SamplingParams(0.5, top_k=10**30, seed=3, max_tokens=9, stop=("x",), stop_token_ids=(4,), ignore_eos=True)
    decoded = PlanDecoder().decode(PlanEncoder().encode(StepPlan(1, (Row(1, (2,), 0, (0,), 1, params, 3),))))
    assert decoded.rows[0].sampling == SamplingParams(0.5, top_k=2**31 - 1)


def test_a_cut_or_longer_plan_is_refused() -> None:
    payload = PlanEncoder().encode(PLAN)
    for wrong in [*(payload[:cut] for cut in range(len(payload))), payload + b"\0", payload + b"\0\0\0\0"]:
        with pytest.raises(ProtocolError):
            PlanDecoder().decode(wrong)


def test_a_request_that_was_never_described_is_refused() -> None:
    encoder = PlanEncoder()
    encoder.encode(PLAN)
    with pytest.raises(ProtocolError, match="without describing it"):
        PlanDecoder().decode(encoder.encode(PLAN))


def test_a_count_beyond_the_plan_is_refused_before_anything_is_made() -> None:
    with pytest.raises(ProtocolError):
        PlanDecoder().decode(struct.pack("<QIII", 0, 2**32 - 1, 2**32 - 1, 2**32 - 1))


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"num_samples": 4}, "do not fit"),
        ({"history": (1, 2)}, "do not fit"),
        ({"sampling": replace(RULED, bad_words=((1,), ()))}, "lengths do not fit"),
    ],
)
def test_a_row_that_contradicts_itself_is_refused(change: dict[str, Any], rule: str) -> None:
    with pytest.raises(ProtocolError, match=rule):
        PlanDecoder().decode(PlanEncoder().encode(StepPlan(0, (PLAN.rows[2]._replace(**change),))))


def test_a_flag_that_does_not_exist_is_refused() -> None:
    payload = bytearray(PlanEncoder().encode(StepPlan(0, PLAN.rows[:1])))
    flags_at = struct.calcsize("<QIII") + struct.calcsize("<qiII")
    payload[flags_at] |= 16
    with pytest.raises(ProtocolError):
        PlanDecoder().decode(bytes(payload))


@given(st.binary(max_size=200))
def test_random_bytes_are_a_plan_or_a_protocol_error(payload: bytes) -> None:
    try:
        PlanDecoder().decode(payload)
    except ProtocolError:
        return

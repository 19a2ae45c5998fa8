"""Plans survive their way to the ranks, though most of a request is sent once; anything else is a ProtocolError."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinycluster.cluster.messages import ProtocolError
from tinycluster.cluster.plan_codec import GENERATION_PLANS, PlanDecoder, PlanEncoder
from tinycluster.engine.request import PENDING, Row, SamplingParams, StepPlan

CHOSEN = SamplingParams(0.8, 40, 0.95, 0.05)
PLAN = StepPlan(
    2**40,
    (
        Row(2**60, (1, 2, PENDING), 70000, (5, 4, 2**31 - 1), True, CHOSEN, 2**64 - 1),
        Row(0, (49151,), 0, (), False, SamplingParams(return_logits_digest=True), 0),
    ),
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
    assert (sizes[1], sizes[2]) == (41, 45)


def test_a_request_that_lost_its_blocks_is_told_anew() -> None:
    encoder, decoder = PlanEncoder(), PlanDecoder()
    for step_id, blocks in enumerate([(1, 2, 3), (1, 2, 3, 4), (1, 2), (9,), (9, 1), ()]):
        plan = decoding(step_id, 7, blocks)
        assert decoder.decode(encoder.encode(plan)) == plan


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
    row = Row(1, (2,), 0, (0,), True, SamplingParams(0.5, seed=3, max_tokens=9, stop=("x",)), 3)
    decoded = PlanDecoder().decode(PlanEncoder().encode(StepPlan(1, (row,))))
    assert decoded.rows[0].sampling == SamplingParams(0.5)


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
        PlanDecoder().decode(struct.pack("<QII", 0, 2**32 - 1, 2**32 - 1))


@given(st.binary(max_size=200))
def test_random_bytes_are_a_plan_or_a_protocol_error(payload: bytes) -> None:
    try:
        PlanDecoder().decode(payload)
    except ProtocolError:
        return

"""Messages survive their way over the wire; anything else is a ProtocolError, never an exception of another kind."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinycluster.cluster.messages import (
    Challenge,
    Heartbeat,
    Hello,
    LoadProgress,
    Message,
    ProtocolError,
    RankFailure,
    Ready,
    Stop,
    Welcome,
    decode,
    encode,
)
from tinycluster.engine.request import PENDING, Row, SampledToken, SamplingParams, StepPlan, StepResult

PLAN = StepPlan(
    2**40,
    (
        Row(2**60, (1, 2, PENDING), 70000, (5, 4, 2**31 - 1), True, SamplingParams(0.8, 40, 0.95, 0.05), 2**64 - 1),
        Row(0, (49151,), 0, (), False, SamplingParams(return_logits_digest=True), 0),
    ),
)
MESSAGES: list[Message] = [
    Challenge(b"nonce"),
    Hello(3, b"n" * 32, b"p" * 32),
    Welcome(b"p" * 32),
    LoadProgress(2**40, 2**41),
    Ready(),
    Heartbeat(),
    RankFailure(1, -1, True, "rank 1: größer"),
    Stop(),
    PLAN,
    StepPlan(0, ()),
    StepResult(7, (SampledToken(3, 49151), SampledToken(2**60, 0, b"\0\1\2\3"), SampledToken(4, 1, b""))),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_survives_its_way(message: Message) -> None:
    kind, payload = encode(message)
    assert decode(kind, memoryview(payload)) == message


def test_a_plan_carries_the_parameters_that_choose_a_token_and_no_others() -> None:
    row = Row(1, (2,), 0, (0,), True, SamplingParams(0.5, seed=3, max_tokens=9, stop=("x",)), 3)
    kind, payload = encode(StepPlan(1, (row,)))
    decoded = decode(kind, memoryview(payload))
    assert isinstance(decoded, StepPlan)
    assert decoded.rows[0].sampling == SamplingParams(0.5)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_cut_or_longer_message_is_refused(message: Message) -> None:
    kind, payload = encode(message)
    for cut in range(len(payload)):
        with pytest.raises(ProtocolError):
            decode(kind, memoryview(payload[:cut]))
    with pytest.raises(ProtocolError, match="goes on"):
        decode(kind, memoryview(payload + b"\0"))


def test_a_count_beyond_the_message_is_refused_before_anything_is_made() -> None:
    kind, _ = encode(PLAN)
    with pytest.raises(ProtocolError):
        decode(kind, memoryview(struct.pack("<QI", 0, 2**32 - 1)))


@given(st.integers(0, 2**16), st.binary(max_size=200))
def test_random_bytes_are_a_message_or_a_protocol_error(kind: int, payload: bytes) -> None:
    try:
        message = decode(kind, memoryview(payload))
    except ProtocolError:
        return
    # Not the bytes: a flag of 2 reads as True, and NaN is not equal to itself.
    assert encode(message)[0] == kind

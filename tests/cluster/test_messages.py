"""Messages survive their way over the wire; anything else is a ProtocolError, never an exception of another kind."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinycluster.cluster.messages import (
    Challenge,
    EncodedPlan,
    EncodedTimeline,
    Heartbeat,
    Hello,
    LoadProgress,
    Message,
    ProtocolError,
    RankFailure,
    Ready,
    SetTracing,
    Stop,
    Welcome,
    decode,
    encode,
)
from tinycluster.engine.request import NO_TOKEN, PromptLogprobs, SampledToken, StepResult, TokenLogprobs

LOGPROBS = TokenLogprobs(-7.25, 2**31 - 1, ((5, -0.125), (49151, -3.5), (0, float("-inf"))))
MESSAGES: list[Message] = [
    Challenge(b"nonce"),
    Hello(3, b"n" * 32, b"p" * 32),
    Welcome(b"p" * 32),
    LoadProgress(2**40, 2**41),
    Ready(),
    Heartbeat(),
    RankFailure(1, -1, True, "rank 1: größer"),
    Stop(),
    EncodedPlan(b"plan"),
    SetTracing(True),
    EncodedTimeline(b"timeline"),
    StepResult(7, (SampledToken(3, 49151), SampledToken(2**60, 0, b"\0\1\2\3"), SampledToken(4, 1, b""))),
    StepResult(
        2**63,
        (SampledToken(3, NO_TOKEN, None, TokenLogprobs(-0.5, 1)), SampledToken(3, 7, b"\0", LOGPROBS)),
        (PromptLogprobs(2**60, 1, (LOGPROBS, TokenLogprobs(float("-inf"), 49152))), PromptLogprobs(4, 65, ())),
    ),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_survives_its_way(message: Message) -> None:
    kind, payload = encode(message)
    assert decode(kind, memoryview(payload)) == message


FIXED = [message for message in MESSAGES if not isinstance(message, EncodedPlan | EncodedTimeline)]


@pytest.mark.parametrize("message", FIXED, ids=lambda message: type(message).__name__)
def test_a_cut_or_longer_message_is_refused(message: Message) -> None:
    kind, payload = encode(message)
    for cut in range(len(payload)):
        with pytest.raises(ProtocolError):
            decode(kind, memoryview(payload[:cut]))
    with pytest.raises(ProtocolError, match="goes on"):
        decode(kind, memoryview(payload + b"\0"))


def test_a_count_beyond_the_message_is_refused_before_anything_is_made() -> None:
    kind, _ = encode(StepResult(0, ()))
    with pytest.raises(ProtocolError):
        decode(kind, memoryview(struct.pack("<QII", 0, 2**32 - 1, 0)))
    with pytest.raises(ProtocolError):
        decode(kind, memoryview(struct.pack("<QII", 0, 0, 2**32 - 1)))


def test_a_sampled_token_costs_few_bytes() -> None:
    samples = tuple(SampledToken(id_, id_) for id_ in range(8))
    assert len(encode(StepResult(0, samples))[1]) == 16 + 8 * 13


def test_a_sample_with_a_flag_that_does_not_exist_is_refused() -> None:
    kind, payload = encode(StepResult(0, (SampledToken(1, 2),)))
    with pytest.raises(ProtocolError, match="flag"):
        decode(kind, memoryview(payload[:-1] + b"\4"))


@given(st.integers(0, 2**16), st.binary(max_size=200))
def test_random_bytes_are_a_message_or_a_protocol_error(kind: int, payload: bytes) -> None:
    try:
        message = decode(kind, memoryview(payload))
    except ProtocolError:
        return
    # Not the bytes: a flag of 2 reads as True, and NaN is not equal to itself.
    assert encode(message)[0] == kind

"""What driver and ranks say to each other, and its form in bytes: fixed little-endian records, nothing is evaluated.

driver -> rank   Challenge, Welcome, EncodedPlan (a StepPlan as it is where both are threads), SetTracing, Stop
rank -> driver   Hello, LoadProgress, Ready, StepResult, EncodedTimeline, Heartbeat, RankFailure
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tinycluster.engine.request import SampledToken, StepPlan, StepResult


class ProtocolError(Exception):
    """The other side sent something that is not a message of this version."""


@dataclass(frozen=True)
class Challenge:
    """Sent on accept: the rank must prove that it knows the cluster's secret."""

    nonce: bytes


@dataclass(frozen=True)
class Hello:
    """A rank's answer: who it is, and a proof over both nonces, the package's version and the model's digest."""

    rank: int
    nonce: bytes
    proof: bytes


@dataclass(frozen=True)
class Welcome:
    """The driver's proof, so that a rank obeys only its own driver."""

    proof: bytes


@dataclass(frozen=True)
class LoadProgress:
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Ready:
    """Weights are loaded and the cache is allocated."""


@dataclass(frozen=True)
class Heartbeat:
    """Sent every second by the control thread of a rank, whatever its step does."""


@dataclass(frozen=True)
class RankFailure:
    """Why a rank gives up; `step_id` is -1 before the first step.

    `is_consequence` says that only a collective failed: the cause is a neighbour that left.
    """

    rank: int
    step_id: int
    is_consequence: bool
    sentence: str


@dataclass(frozen=True)
class Stop:
    pass


@dataclass(frozen=True)
class EncodedPlan:
    """A StepPlan on its way between processes; plan_codec.py reads and writes it."""

    payload: bytes


@dataclass(frozen=True)
class SetTracing:
    """Off is answered with an EncodedTimeline of the steps since on."""

    is_on: bool


@dataclass(frozen=True)
class EncodedTimeline:
    """What a rank did; timeline.py reads and writes it."""

    payload: bytes


Message = (
    Challenge
    | Hello
    | Welcome
    | LoadProgress
    | Ready
    | Heartbeat
    | RankFailure
    | SetTracing
    | EncodedTimeline
    | Stop
    | StepPlan
    | EncodedPlan
    | StepResult
)


class _Reader:
    """Consumes a payload from left to right; ProtocolError past its end."""

    def __init__(self, payload: memoryview) -> None:
        self._payload, self._offset = payload, 0

    def fields(self, record: struct.Struct) -> tuple[Any, ...]:
        return record.unpack(self.take(record.size))

    def rest(self) -> bytes:
        return bytes(self.take(len(self._payload) - self._offset))

    def take(self, num_bytes: int) -> memoryview:
        end = self._offset + num_bytes
        if end > len(self._payload):
            raise ProtocolError("a message ends before its last field")
        piece = self._payload[self._offset : end]
        self._offset = end
        return piece

    def block(self) -> bytes:
        (num_bytes,) = self.fields(_LENGTH)
        return bytes(self.take(num_bytes))

    def text(self) -> str:
        try:
            return self.block().decode()
        except UnicodeDecodeError:
            raise ProtocolError("a text field is not UTF-8") from None

    def finish(self) -> None:
        if self._offset != len(self._payload):
            raise ProtocolError("a message goes on after its last field")


_LENGTH = struct.Struct("<I")
_HELLO = struct.Struct("<I")
_PROGRESS = struct.Struct("<QQ")
_FAILURE = struct.Struct("<Iq?")
_TRACING = struct.Struct("<?")
_RESULT = struct.Struct("<QI")
_SAMPLE = struct.Struct("<qi?")


def _block(content: bytes) -> bytes:
    return _LENGTH.pack(len(content)) + content


def _encode_result(result: StepResult) -> bytes:
    parts = [_RESULT.pack(result.step_id, len(result.samples))]
    parts += [_SAMPLE.pack(sample.request_id, sample.token, sample.logits is not None) for sample in result.samples]
    parts += [_block(sample.logits) for sample in result.samples if sample.logits is not None]
    return b"".join(parts)


def _decode_result(reader: _Reader) -> StepResult:
    step_id, num_samples = reader.fields(_RESULT)
    fields = _SAMPLE.iter_unpack(reader.take(num_samples * _SAMPLE.size))
    return StepResult(
        step_id,
        tuple(SampledToken(id_, token, reader.block() if has_logits else None) for id_, token, has_logits in fields),
    )


def _encode_hello(hello: Hello) -> bytes:
    return _HELLO.pack(hello.rank) + _block(hello.nonce) + _block(hello.proof)


def _decode_hello(reader: _Reader) -> Hello:
    (rank,) = reader.fields(_HELLO)
    return Hello(rank, nonce=reader.block(), proof=reader.block())


def _decode_failure(reader: _Reader) -> RankFailure:
    rank, step_id, is_consequence = reader.fields(_FAILURE)
    return RankFailure(rank, step_id, is_consequence, reader.text())


def _encode_failure(failure: RankFailure) -> bytes:
    return _FAILURE.pack(failure.rank, failure.step_id, failure.is_consequence) + _block(
        failure.sentence.encode(errors="replace")
    )


@dataclass(frozen=True)
class _Codec:
    kind: int
    encode: Callable[[Any], bytes]
    decode: Callable[[_Reader], Message]


_CODECS: dict[type[Any], _Codec] = {
    Challenge: _Codec(1, lambda m: _block(m.nonce), lambda r: Challenge(r.block())),
    Hello: _Codec(2, _encode_hello, _decode_hello),
    Welcome: _Codec(3, lambda m: _block(m.proof), lambda r: Welcome(r.block())),
    LoadProgress: _Codec(
        4, lambda m: _PROGRESS.pack(m.done_bytes, m.total_bytes), lambda r: LoadProgress(*r.fields(_PROGRESS))
    ),
    Ready: _Codec(5, lambda m: b"", lambda r: Ready()),
    Heartbeat: _Codec(6, lambda m: b"", lambda r: Heartbeat()),
    RankFailure: _Codec(7, _encode_failure, _decode_failure),
    Stop: _Codec(8, lambda m: b"", lambda r: Stop()),
    EncodedPlan: _Codec(9, lambda m: m.payload, lambda r: EncodedPlan(r.rest())),
    StepResult: _Codec(10, _encode_result, _decode_result),
    SetTracing: _Codec(11, lambda m: _TRACING.pack(m.is_on), lambda r: SetTracing(*r.fields(_TRACING))),
    EncodedTimeline: _Codec(12, lambda m: m.payload, lambda r: EncodedTimeline(r.rest())),
}
_CODEC_OF_KIND = {codec.kind: codec for codec in _CODECS.values()}


def encode(message: Message) -> tuple[int, bytes]:
    """(kind, payload) of a message."""
    codec = _CODECS[type(message)]
    return codec.kind, codec.encode(message)


def decode(kind: int, payload: memoryview) -> Message:
    codec = _CODEC_OF_KIND.get(kind)
    if codec is None:
        raise ProtocolError(f"message kind {kind} is unknown")
    reader = _Reader(payload)
    message = codec.decode(reader)
    reader.finish()
    return message

"""What driver and ranks say to each other, and its form in bytes.

driver -> rank   Challenge, Welcome, EncodedPlan (a StepPlan as it is where both are threads), SetTracing, Stop
rank -> driver   Hello, LoadProgress, Ready, StepResult, EncodedTimeline, Heartbeat, RankReport, RankFailure
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tinycluster.cluster.rank_report import RankReport, decode_report, encode_report
from tinycluster.cluster.reader import ProtocolError as ProtocolError
from tinycluster.cluster.reader import Reader, as_block
from tinycluster.cluster.result_codec import decode_result, encode_result
from tinycluster.engine.request import StepPlan, StepResult


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
    """Sent every second by the control thread of a rank, whatever its step does, until it has times to report."""


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
    | RankReport
    | RankFailure
    | SetTracing
    | EncodedTimeline
    | Stop
    | StepPlan
    | EncodedPlan
    | StepResult
)


_HELLO = struct.Struct("<I")
_PROGRESS = struct.Struct("<QQ")
_FAILURE = struct.Struct("<Iq?")
_TRACING = struct.Struct("<?")


def _encode_hello(hello: Hello) -> bytes:
    return _HELLO.pack(hello.rank) + as_block(hello.nonce) + as_block(hello.proof)


def _decode_hello(reader: Reader) -> Hello:
    (rank,) = reader.fields(_HELLO)
    return Hello(rank, nonce=reader.block(), proof=reader.block())


def _decode_failure(reader: Reader) -> RankFailure:
    rank, step_id, is_consequence = reader.fields(_FAILURE)
    return RankFailure(rank, step_id, is_consequence, reader.text())


def _encode_failure(failure: RankFailure) -> bytes:
    return _FAILURE.pack(failure.rank, failure.step_id, failure.is_consequence) + as_block(
        failure.sentence.encode(errors="replace")
    )


@dataclass(frozen=True)
class _Codec:
    kind: int
    encode: Callable[[Any], bytes]
    decode: Callable[[Reader], Message]


_CODECS: dict[type[Any], _Codec] = {
    Challenge: _Codec(1, lambda m: as_block(m.nonce), lambda r: Challenge(r.block())),
    Hello: _Codec(2, _encode_hello, _decode_hello),
    Welcome: _Codec(3, lambda m: as_block(m.proof), lambda r: Welcome(r.block())),
    LoadProgress: _Codec(
        4, lambda m: _PROGRESS.pack(m.done_bytes, m.total_bytes), lambda r: LoadProgress(*r.fields(_PROGRESS))
    ),
    Ready: _Codec(5, lambda m: b"", lambda r: Ready()),
    Heartbeat: _Codec(6, lambda m: b"", lambda r: Heartbeat()),
    RankFailure: _Codec(7, _encode_failure, _decode_failure),
    Stop: _Codec(8, lambda m: b"", lambda r: Stop()),
    EncodedPlan: _Codec(9, lambda m: m.payload, lambda r: EncodedPlan(r.rest())),
    StepResult: _Codec(10, encode_result, decode_result),
    SetTracing: _Codec(11, lambda m: _TRACING.pack(m.is_on), lambda r: SetTracing(*r.fields(_TRACING))),
    EncodedTimeline: _Codec(12, lambda m: m.payload, lambda r: EncodedTimeline(r.rest())),
    RankReport: _Codec(13, encode_report, decode_report),
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
    reader = Reader(payload)
    message = codec.decode(reader)
    reader.finish()
    return message

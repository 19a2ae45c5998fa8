"""Inputs that every target takes, as the places where fuzzing begins."""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tests.attacks.schemas import BODIES
from tests.engine.gguf_file import write_gguf
from tests.fuzz.targets import SMALL, ModelFolder
from tinycluster.cluster.messages import Challenge, Hello, LoadProgress, RankFailure, Ready, Welcome, encode
from tinycluster.cluster.plan_codec import PlanEncoder
from tinycluster.engine.request import Row, SampledToken, SamplingParams, StepPlan, StepResult, TokenLogprobs

RICH = SamplingParams(0.8, 40, 0.95, presence_penalty=1.0, bad_words=((1, 2),), logit_bias=((3, 1.0),), logprobs=2)
ROWS = (
    Row(7, (1, 2, 3), 0, (4, 5), 1, SamplingParams(0.5, seed=3), 9, 4),
    Row(8, (6,), 2, (1,), 1, RICH, 2, 3, (1, 2), b"\xff\x01"),
)
FRAME = struct.Struct("<4sHHIQI")


def valid_inputs(target: str) -> Iterator[bytes]:
    if target == "gguf":
        yield from _gguf_files()
    elif target == "folder":
        with tempfile.TemporaryDirectory() as folder:
            good = ModelFolder(Path(folder)).good
        for number, content in enumerate(good.values()):
            yield bytes([number]) + (content or b"{{ messages[0].content }}")
    elif target == "request":
        for number, (_, body) in enumerate(BODIES.values()):
            yield bytes([number]) + json.dumps(body).encode()
    elif target == "plans":
        yield _plans()
    else:
        yield from _messages(is_framed=target == "frames")


def _gguf_files() -> Iterator[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        for config in (SMALL, replace(SMALL, architecture="qwen3", tie_word_embeddings=False)):
            yield write_gguf(Path(folder, "model.gguf"), config).read_bytes()


def _plans() -> bytes:
    encoder = PlanEncoder()
    first = encoder.encode(StepPlan(1, ROWS, copies=((1, 2),), ended=(3,)))
    second = encoder.encode(StepPlan(2, (ROWS[0]._replace(tokens=(4,), position=3),)))
    return first + second


def _messages(*, is_framed: bool) -> Iterator[bytes]:
    logprobs = TokenLogprobs(-0.5, 1, ((3, -0.5), (4, -1.5)))
    result = StepResult(3, (SampledToken(7, 11), SampledToken(8, 12, b"\x00" * 16, logprobs)))
    failure = RankFailure(1, 5, False, "lost")
    messages = (Challenge(b"n" * 16), Hello(1, b"n", b"p"), Welcome(b"p"), LoadProgress(1, 2), Ready(), failure, result)
    for message in messages:
        kind, payload = encode(message)
        head = FRAME.pack(b"tcCh", 1, kind, 1, 0, len(payload))
        yield head + payload if is_framed else bytes([kind]) + payload
    if not is_framed:
        yield bytes([9]) + PlanEncoder().encode(StepPlan(1, ROWS, copies=((1, 2),), ended=(3,)))

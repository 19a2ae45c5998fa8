"""Engines over small random models, and what they answer."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tinycluster.cluster.config import Settings
from tinycluster.cluster.driver import Engine, Generation
from tinycluster.cluster.launch import start_engine
from tinycluster.engine.request import FinishReason, SamplingParams

GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, return_logits_digest=True)
SAMPLED = replace(GREEDY, temperature=0.8, seed=7)


@dataclass
class Answer:
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    logits_sha256: str = ""


def settings_for(
    source: Path, *, address: str = "local", cluster: dict[str, Any] | None = None, **model: Any
) -> Settings:
    model = {"limits": {"max_model_len": 128}, "kv_cache": {"memory": "4MiB"}, "threads": 1} | model
    return Settings.model_validate(
        {
            "models": [{"name": "tiny", "source": str(source), **model}],
            "cluster": {"address": address, **(cluster or {})},
        }
    )


def engine_for(source: Path, **changes: Any) -> Engine:
    settings = settings_for(source, **changes)
    return start_engine(settings.models[0], settings)


def read(generation: Generation) -> Answer:
    """The whole answer; its digest is over the float32 logits of every step, in order."""
    answer, digest = Answer(), hashlib.sha256()
    for delta in generation:
        answer.token_ids += delta.token_ids
        answer.text += delta.text
        answer.finish_reason, answer.stop_reason = delta.finish_reason, delta.stop_reason
        for logits in delta.logits:
            digest.update(logits)
    answer.logits_sha256 = digest.hexdigest()
    return answer


def answer_all(engine: Engine, prompts: Sequence[Sequence[int]], sampling: SamplingParams) -> list[Answer]:
    """All at once: the engine batches them."""
    return [read(generation) for generation in [engine.submit(prompt, sampling) for prompt in prompts]]


def answers(source: Path, prompts: Sequence[Sequence[int]], sampling: SamplingParams, **changes: Any) -> list[Answer]:
    with closing(engine_for(source, **changes)) as engine:
        return answer_all(engine, prompts, sampling)


def prompt_of(length: int, *, first: int = 3) -> list[int]:
    """Tokens that all differ from their neighbours; the tiny tokenizers know at least 260."""
    return [3 + (first * 31 + 7 * index) % 250 for index in range(length)]


class Line:
    """A line of progress that remembers what it was told."""

    def __init__(self) -> None:
        self.label, self.num_bytes, self.total_bytes, self.is_finished = "", 0, 0, False

    def start(self, label: str, total_bytes: int | None) -> None:
        self.label, self.total_bytes = label, total_bytes or 0

    def advance(self, num_bytes: int) -> None:
        self.num_bytes += num_bytes

    def finish(self) -> None:
        self.is_finished = True

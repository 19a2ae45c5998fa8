"""What is asked of a server under load: prompts with their output lengths, and when each request is sent.

All randomness comes from the numpy generator that is passed in. No tokenizer is needed: random prompts are token ids
(`/v1/completions` takes a list of ids) or common words where only text is accepted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tinycluster.engine.errors import ConfigError

DatasetName = Literal["random", "sharegpt", "custom", "prefix_repetition"]
Prompt = str | tuple[int, ...]

# Ids below this are special tokens in most vocabularies; they would end or garble a prompt.
FIRST_ORDINARY_ID = 100
# A reply's length in a dataset of text, where no tokenizer is at hand: English has about four characters per token.
CHARACTERS_PER_TOKEN = 4

WORDS: tuple[str, ...] = (
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
)
WORDS += ("family", "student", "group", "country", "problem", "hand", "part", "place", "case", "week", "company")
WORDS += ("system", "program", "question", "work", "night", "point", "home", "water", "room", "mother", "story")


@dataclass(frozen=True)
class BenchRequest:
    prompt: Prompt
    output_tokens: int


@dataclass(frozen=True)
class PromptSource:
    """Draws one piece of a prompt of a given length: token ids below `vocab_size`, or words where it is None."""

    vocab_size: int | None

    def draw(self, rng: np.random.Generator, num_tokens: int) -> Prompt:
        if self.vocab_size is None:
            return " ".join(WORDS[index] for index in rng.integers(0, len(WORDS), num_tokens))
        first = min(FIRST_ORDINARY_ID, self.vocab_size // 2)
        return tuple(int(token) for token in rng.integers(first, self.vocab_size, num_tokens))


@dataclass(frozen=True)
class LengthRange:
    """Lengths drawn evenly from mean * (1 - ratio) .. mean * (1 + ratio), never below one token."""

    mean: int
    ratio: float = 0.0

    def __post_init__(self) -> None:
        if self.mean < 1:
            raise ConfigError(f"a prompt or output length must be at least 1 token, got {self.mean}")
        if not 0 <= self.ratio < 1:
            raise ConfigError(f"--random-range-ratio must lie in [0, 1), got {self.ratio}")

    def draw(self, rng: np.random.Generator) -> int:
        low, high = math.floor(self.mean * (1 - self.ratio)), math.ceil(self.mean * (1 + self.ratio))
        return max(1, int(rng.integers(low, high + 1)))


def random_requests(
    rng: np.random.Generator, source: PromptSource, num_prompts: int, input_len: LengthRange, output_len: LengthRange
) -> tuple[BenchRequest, ...]:
    """Prompts that share nothing with one another."""
    return tuple(BenchRequest(source.draw(rng, input_len.draw(rng)), output_len.draw(rng)) for _ in range(num_prompts))


@dataclass(frozen=True)
class PrefixRepetition:
    """`num_prefixes` long prefixes, each shared by an equal share of the prompts, with a fresh suffix per prompt."""

    num_prefixes: int = 10
    prefix_len: int = 256
    suffix_len: int = 256
    output_len: int = 128

    def __post_init__(self) -> None:
        for name in ("num_prefixes", "prefix_len", "suffix_len", "output_len"):
            if (value := getattr(self, name)) < 1:
                flag = "--prefix-repetition-" + name.replace("_", "-")
                raise ConfigError(f"{flag} must be at least 1, got {value}")


def prefix_repetition_requests(
    rng: np.random.Generator, source: PromptSource, num_prompts: int, shape: PrefixRepetition
) -> tuple[BenchRequest, ...]:
    prefixes = [source.draw(rng, shape.prefix_len) for _ in range(shape.num_prefixes)]
    order = rng.permutation(num_prompts)
    prompts = [_joined(prefixes[index % len(prefixes)], source.draw(rng, shape.suffix_len)) for index in order]
    return tuple(BenchRequest(prompt, shape.output_len) for prompt in prompts)


def _joined(prefix: Prompt, suffix: Prompt) -> Prompt:
    if isinstance(prefix, str) or isinstance(suffix, str):
        return f"{prefix} {suffix}"
    return prefix + suffix


def sharegpt_requests(
    rng: np.random.Generator, path: Path, num_prompts: int, output_len: int | None
) -> tuple[BenchRequest, ...]:
    """First turns of ShareGPT conversations; the second turn gives the output length unless `output_len` does."""
    turns = [entry.get("conversations", []) for entry in _read_json(path) if isinstance(entry, dict)]
    pairs = [
        (str(turn[0]["value"]), output_len or max(1, len(str(turn[1]["value"])) // CHARACTERS_PER_TOKEN))
        for turn in turns
        if len(turn) >= 2 and turn[0].get("value") and turn[1].get("value")
    ]
    return _sampled(rng, path, pairs, num_prompts, "conversations of at least two turns")


def custom_requests(
    rng: np.random.Generator, path: Path, num_prompts: int, output_len: int
) -> tuple[BenchRequest, ...]:
    """A JSON Lines file: `prompt` (text, or a list of token ids) and optionally `output_tokens` on every line."""
    pairs: list[tuple[Prompt, int]] = []
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        if line.strip():
            pairs.append(_custom_line(path, number, line, output_len))
    return _sampled(rng, path, pairs, num_prompts, "prompts")


def _custom_line(path: Path, number: int, line: str, output_len: int) -> tuple[Prompt, int]:
    try:
        entry = json.loads(line)
        prompt = entry["prompt"]
        return (prompt if isinstance(prompt, str) else tuple(map(int, prompt))), int(
            entry.get("output_tokens", output_len)
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}:{number}: each line must be a JSON object with a prompt") from error


def _sampled(
    rng: np.random.Generator, path: Path, pairs: Sequence[tuple[Prompt, int]], num_prompts: int, wanted: str
) -> tuple[BenchRequest, ...]:
    """`num_prompts` of the pairs in shuffled order, taken again from the start when there are too few."""
    if not pairs:
        raise ConfigError(f"{path} holds no {wanted}")
    order = rng.permutation(len(pairs))
    chosen = [pairs[order[index % len(pairs)]] for index in range(num_prompts)]
    return tuple(BenchRequest(prompt, output_tokens) for prompt, output_tokens in chosen)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--dataset-path {path} cannot be read: {error}") from error


def _read_json(path: Path) -> list[Any]:
    try:
        entries = json.loads(_read_text(path))
    except ValueError as error:
        raise ConfigError(f"--dataset-path {path} is not JSON: {error}") from error
    if not isinstance(entries, list):
        raise ConfigError(f"--dataset-path {path} must hold a JSON list of conversations")
    return entries


def arrival_times(
    rng: np.random.Generator, num_requests: int, request_rate: float, burstiness: float
) -> tuple[float, ...]:
    """Seconds after the start at which each request is sent; the first at 0.

    Gaps follow a gamma distribution of mean 1 / request_rate and shape `burstiness`: 1 is a Poisson process, below 1
    bursts, above 1 evens out. An infinite rate sends all at once.
    """
    if not request_rate > 0:
        raise ConfigError(f"--request-rate must be positive or inf, got {request_rate}")
    if not burstiness > 0:
        raise ConfigError(f"--burstiness must be positive, got {burstiness}")
    if math.isinf(request_rate):
        return (0.0,) * num_requests
    gaps = rng.gamma(burstiness, 1 / (request_rate * burstiness), max(0, num_requests - 1))
    return tuple(float(time) for time in np.concatenate([[0.0], np.cumsum(gaps)])[:num_requests])

"""The fields that say how tokens are chosen, as OpenAI and vLLM name them, and the SamplingParams that they make."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Protocol

from pydantic import AfterValidator, BeforeValidator, Field

from tinycluster.engine.errors import RequestError
from tinycluster.engine.request import SamplingParams
from tinycluster.serve.fields import Fields, TokenId, or_default

MAX_CHOICES = 128
"""Largest number of generations of one HTTP request: prompts × choices."""
MAX_STOP_CHARS = 1024
MAX_TOKENS = 2**31 - 1
MAX_LOGPROBS = 20
MAX_BIASED_TOKENS = 1024
MAX_BAD_WORDS = 128
MAX_BAD_WORD_CHARS = 128


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _by_token(value: dict[str, float]) -> dict[str, float]:
    """JSON's keys are strings: here the decimal digits of token ids, each once."""
    if not all(key.isascii() and key.isdecimal() and len(key) <= 10 for key in value):
        raise ValueError("must have token ids, written as decimal numbers, as its keys")
    if len({int(key) for key in value}) != len(value):
        raise ValueError("must name every token once")
    return value


def _not_blank(word: str) -> str:
    if not word.strip():
        raise ValueError("must not be blank")
    return word


Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
Stops = Annotated[
    list[Stop],
    Field(max_length=4),
    BeforeValidator(_listed, json_schema_input_type=Stop | Annotated[list[Stop], Field(max_length=4)]),
]
Penalty = Annotated[float, Field(ge=-2, le=2)]
BadWord = Annotated[str, Field(max_length=MAX_BAD_WORD_CHARS), AfterValidator(_not_blank)]
LogitBias = Annotated[
    dict[str, Annotated[float, Field(ge=-100, le=100)]],
    Field(max_length=MAX_BIASED_TOKENS),
    AfterValidator(_by_token),
]
NumLogprobs = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]


class Encoder(Protocol):
    """The part of a tokenizer that finds the tokens of a bad word."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...


class SamplingFields(Fields):
    """What chat and completions share."""

    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(ge=1e-3, le=1e3)] | None = None
    logit_bias: LogitBias | None = None
    bad_words: Annotated[list[BadWord], Field(max_length=MAX_BAD_WORDS)] | None = None
    allowed_token_ids: Annotated[list[TokenId], Field(min_length=1)] | None = None
    stop: Stops | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64)] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    prompt_logprobs: NumLogprobs | None = None

    @property
    def num_choices(self) -> int:
        """How many answers the client gets to each prompt."""
        return self.n or 1

    @property
    def skips_special_tokens(self) -> bool:
        return self.skip_special_tokens is not False

    @property
    def num_candidates(self) -> int:
        """How many answers are generated to each prompt."""
        return self.num_choices

    def limit(self) -> int | None:
        return self.max_tokens

    def num_logprobs(self) -> int | None:
        """Most likely tokens to report with each generated one; None reports nothing."""
        raise NotImplementedError

    def num_prompt_logprobs(self) -> int | None:
        return self.prompt_logprobs

    def check_sampling_fields(self) -> None:
        """RequestError where fields that are right alone contradict each other."""
        limit = self.limit()
        if self.min_tokens and limit is not None and self.min_tokens > limit:
            raise RequestError(f"min_tokens must not exceed max_tokens, {limit}, got {self.min_tokens}", "min_tokens")

    def samplings(self, encoder: Encoder, defaults: SamplingParams) -> list[SamplingParams]:
        """The parameters of every candidate: they differ by their seeds, and the first one's prompt counts for all.
        `defaults` are the model's."""
        first = self._sampling(encoder, defaults)
        if self.num_candidates == 1:
            return [first]
        other = replace(first, prompt_logprobs=None)
        seeds = [None if self.seed is None else choice_seed(self.seed, c) for c in range(1, self.num_candidates)]
        return [first, *(replace(other, seed=seed) for seed in seeds)]

    def _sampling(self, encoder: Encoder, defaults: SamplingParams) -> SamplingParams:
        return SamplingParams(
            temperature=or_default(self.temperature, defaults.temperature),
            top_k=min(max(or_default(self.top_k, defaults.top_k), 0), 2**31 - 1),
            top_p=or_default(self.top_p, defaults.top_p),
            min_p=or_default(self.min_p, defaults.min_p),
            seed=None if self.seed is None else choice_seed(self.seed, 0),
            max_tokens=self.limit(),
            stop=tuple(self.stop or ()),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=bool(self.ignore_eos),
            include_stop_str_in_output=bool(self.include_stop_str_in_output),
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            repetition_penalty=or_default(self.repetition_penalty, defaults.repetition_penalty),
            logit_bias=tuple(sorted((int(token), bias) for token, bias in (self.logit_bias or {}).items())),
            min_tokens=self.min_tokens or 0,
            bad_words=bad_word_tokens(encoder, self.bad_words or ()),
            allowed_token_ids=None if self.allowed_token_ids is None else tuple(sorted(set(self.allowed_token_ids))),
            logprobs=self.num_logprobs(),
            prompt_logprobs=self.num_prompt_logprobs(),
            skip_special_tokens=self.skips_special_tokens,
        )


def bad_word_tokens(encoder: Encoder, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """The token sequences that spell the words at the begin of a text and after a space.

    The one with a space counts only where the space is part of the word's first token: then it has as many tokens as
    the one without and begins with another. RequestError for a word of which the tokenizer knows nothing.
    """
    sequences: list[tuple[int, ...]] = []
    for index, word in enumerate(words):
        bare, spaced = (tuple(encoder.encode(space + word.lstrip(), add_special_tokens=False)) for space in ("", " "))
        if not bare:
            raise RequestError(f"bad_words[{index}] has no tokens", f"bad_words[{index}]")
        sequences.append(bare)
        if len(spaced) == len(bare) and spaced[0] != bare[0]:
            sequences.append(spaced)
    return tuple(dict.fromkeys(sequences))


def choice_seed(seed: int, choice: int) -> int:
    """The seed of choice number `choice` of a request with this seed: an integer in 0 .. 2**63 - 1.

    Choice 0 has the request's own seed, so that it equals the answer with n = 1; every other has the first eight bytes
    of SHA-256 over "seed:choice". The sign of a negative seed is dropped.
    """
    number = seed if choice == 0 else int.from_bytes(hashlib.sha256(f"{seed}:{choice}".encode()).digest()[:8], "little")
    return number & (2**63 - 1)

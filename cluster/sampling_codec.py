"""Sampling parameters as bytes, as far as a rank needs them: what chooses a token, and what is told of it.

choice   temperature f64, top_k i32, top_p f64, min_p f64, return_logits_digest bool
rules    presence, frequency and repetition penalty f64, min_tokens u32, logprobs and prompt_logprobs i32 (-1 for
         none), then how many: biased tokens, bad words, tokens of them, allowed tokens (-1 for all), stop tokens,
         each i32; then the biased tokens i32, their biases f64, the bad words' lengths i32, and all those tokens i32
"""

from __future__ import annotations

import struct
from dataclasses import replace
from itertools import chain
from typing import Any

from tinycluster.cluster.reader import ProtocolError, Reader
from tinycluster.engine.request import SamplingParams

CHOICE = struct.Struct("<didd?")
_RULES = struct.Struct("<dddIiiiiiii")
_MOST = 2**31 - 1
_NONE = -1


def choice_of(sampling: SamplingParams) -> tuple[Any, ...]:
    """The fields of CHOICE. More than all tokens is as good as all."""
    return (
        sampling.temperature,
        min(sampling.top_k, _MOST),
        sampling.top_p,
        sampling.min_p,
        sampling.return_logits_digest,
    )


def with_choice(fields: tuple[Any, ...]) -> SamplingParams:
    temperature, top_k, top_p, min_p, digest = fields
    return SamplingParams(temperature, top_k, top_p, min_p, return_logits_digest=digest)


def encode_rules(sampling: SamplingParams) -> bytes:
    """Empty where a request has none. Which tokens end a request matters to a rank only where they are forbidden."""
    if _rules_of(sampling) == _NO_RULES:
        return b""
    bias, words, allowed = sampling.logit_bias, sampling.bad_words, sampling.allowed_token_ids
    bad_tokens = list(chain.from_iterable(words))
    stop = sampling.stop_token_ids if sampling.min_tokens else ()
    tokens = [*map(len, words), *bad_tokens, *(allowed or ()), *stop]
    head = _RULES.pack(
        sampling.presence_penalty,
        sampling.frequency_penalty,
        sampling.repetition_penalty,
        min(sampling.min_tokens, _MOST),
        _NONE if sampling.logprobs is None else sampling.logprobs,
        _NONE if sampling.prompt_logprobs is None else sampling.prompt_logprobs,
        len(bias),
        len(words),
        len(bad_tokens),
        _NONE if allowed is None else len(allowed),
        len(stop),
    )
    biases = struct.pack(f"<{len(bias)}i{len(bias)}d", *(token for token, _ in bias), *(value for _, value in bias))
    return head + biases + struct.pack(f"<{len(tokens)}i", *tokens)


def decode_rules(reader: Reader, choice: SamplingParams) -> SamplingParams:
    """`choice` with the rules that come next. ProtocolError where they don't fit their counts."""
    presence, frequency, repetition, min_tokens, logprobs, prompt_logprobs, *counts = reader.fields(_RULES)
    num_bias, num_words, num_bad, num_allowed, num_stop = counts
    if min(num_bias, num_words, num_bad, num_stop, num_allowed + 1) < 0:
        raise ProtocolError("a count of tokens is negative")
    bias = tuple(zip(reader.array("i", num_bias), reader.array("d", num_bias), strict=True))
    lengths = reader.array("i", num_words)
    words = _cut(reader.array("i", num_bad), lengths)
    return replace(
        choice,
        presence_penalty=presence,
        frequency_penalty=frequency,
        repetition_penalty=repetition,
        min_tokens=min_tokens,
        logprobs=None if logprobs == _NONE else logprobs,
        prompt_logprobs=None if prompt_logprobs == _NONE else prompt_logprobs,
        logit_bias=bias,
        bad_words=words,
        allowed_token_ids=None if num_allowed == _NONE else reader.array("i", num_allowed),
        stop_token_ids=reader.array("i", num_stop),
    )


def _cut(tokens: tuple[int, ...], lengths: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    if sum(lengths) != len(tokens) or any(length < 1 for length in lengths):
        raise ProtocolError("the bad words' lengths do not fit their tokens")
    words, start = [], 0
    for length in lengths:
        words.append(tokens[start : start + length])
        start += length
    return tuple(words)


def _rules_of(sampling: SamplingParams) -> tuple[Any, ...]:
    return (
        sampling.presence_penalty,
        sampling.frequency_penalty,
        sampling.repetition_penalty,
        sampling.min_tokens,
        sampling.logprobs,
        sampling.prompt_logprobs,
        sampling.logit_bias,
        sampling.bad_words,
        sampling.allowed_token_ids,
    )


_NO_RULES = _rules_of(SamplingParams())

"""The ranges of the sampling parameters, checked once at the door: OpenAI's where it has the field, else vLLM's, and
limits of our own where neither bounds what a request may cost."""

from __future__ import annotations

from collections.abc import Sequence

from tinycluster.engine.errors import RequestError
from tinycluster.engine.request import SamplingParams

MAX_STOP_STRINGS = 4
MAX_STOP_CHARACTERS = 1024
"""Of each stop string."""
MAX_STOP_TOKENS = 1024
MAX_SEED = 2**63 - 1
MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY = 1e-3, 1e3
"""Beyond, logits would leave the range of float32."""
MAX_LOGIT_BIASES = 1024
MAX_LOGPROBS = 20
MAX_BAD_WORDS = 1024
MAX_BAD_WORD_TOKENS = 64
"""Of each bad word."""


def check_token_ids(token_ids: Sequence[int], vocab_size: int, field: str) -> None:
    """RequestError for an id that the vocabulary does not have."""
    smallest, largest = min(token_ids, default=0), max(token_ids, default=0)
    if smallest < 0 or largest >= vocab_size:
        wrong = smallest if smallest < 0 else largest
        raise RequestError(f"{field} holds token id {wrong}, but the vocabulary ends at {vocab_size - 1}", field)


def check_sampling(params: SamplingParams, vocab_size: int) -> None:
    """RequestError naming the first field that is out of its range."""
    _check_choice(params)
    _check_stop(params, vocab_size)
    _check_penalties(params)
    _check_tokens(params, vocab_size)
    for field, count in (("logprobs", params.logprobs), ("prompt_logprobs", params.prompt_logprobs)):
        _require(count is None or 0 <= count <= MAX_LOGPROBS, field, f"between 0 and {MAX_LOGPROBS}", count)


def _check_choice(params: SamplingParams) -> None:
    _require(0 <= params.temperature <= 2, "temperature", "between 0 and 2", params.temperature)
    _require(params.top_k >= -1, "top_k", "0 or -1 (off) or positive", params.top_k)
    _require(0 < params.top_p <= 1, "top_p", "above 0 and at most 1", params.top_p)
    _require(0 <= params.min_p <= 1, "min_p", "between 0 and 1", params.min_p)
    seed = 0 if params.seed is None else params.seed
    _require(0 <= seed <= MAX_SEED, "seed", f"between 0 and {MAX_SEED}", params.seed)


def _check_stop(params: SamplingParams, vocab_size: int) -> None:
    stop, longest = params.stop, max(map(len, params.stop), default=0)
    max_tokens = 1 if params.max_tokens is None else params.max_tokens
    _require(max_tokens >= 1, "max_tokens", "at least 1", params.max_tokens)
    _require(params.min_tokens >= 0, "min_tokens", "at least 0", params.min_tokens)
    most = params.min_tokens if params.max_tokens is None else params.max_tokens
    _require(params.min_tokens <= most, "min_tokens", f"at most max_tokens = {most}", params.min_tokens)
    _require(len(stop) <= MAX_STOP_STRINGS, "stop", f"at most {MAX_STOP_STRINGS} strings", len(stop))
    _require(longest <= MAX_STOP_CHARACTERS, "stop", f"strings of at most {MAX_STOP_CHARACTERS} characters", longest)
    _require(all(stop), "stop", "strings that are not empty", list(stop))
    _require(all("\0" not in string for string in stop), "stop", "strings without NUL characters", list(stop))
    _check_count(params.stop_token_ids, "stop_token_ids", MAX_STOP_TOKENS)
    _check_ids(params.stop_token_ids, "stop_token_ids", vocab_size)


def _check_penalties(params: SamplingParams) -> None:
    _require(-2 <= params.presence_penalty <= 2, "presence_penalty", "between -2 and 2", params.presence_penalty)
    _require(-2 <= params.frequency_penalty <= 2, "frequency_penalty", "between -2 and 2", params.frequency_penalty)
    least, most, repetition = MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY, params.repetition_penalty
    _require(least <= repetition <= most, "repetition_penalty", f"between {least:g} and {most:g}", repetition)


def _check_tokens(params: SamplingParams, vocab_size: int) -> None:
    biases, words, allowed = params.logit_bias, params.bad_words, params.allowed_token_ids
    _check_count(biases, "logit_bias", MAX_LOGIT_BIASES)
    _check_ids([token for token, _ in biases], "logit_bias", vocab_size)
    for _, bias in biases:
        _require(-100 <= bias <= 100, "logit_bias", "of values between -100 and 100", bias)
    _check_count(words, "bad_words", MAX_BAD_WORDS)
    for word in words:
        length_rule = f"of words of 1 to {MAX_BAD_WORD_TOKENS} tokens"
        _require(1 <= len(word) <= MAX_BAD_WORD_TOKENS, "bad_words", length_rule, len(word))
        _check_ids(word, "bad_words", vocab_size)
    if allowed is not None:
        _require(0 < len(allowed) <= vocab_size, "allowed_token_ids", f"1 to {vocab_size} ids", len(allowed))
        _check_ids(allowed, "allowed_token_ids", vocab_size)


def _check_count(values: Sequence[object], field: str, most: int) -> None:
    _require(len(values) <= most, field, f"at most {most} entries", len(values))


def _check_ids(ids: Sequence[int], field: str, vocab_size: int) -> None:
    for token in ids:
        _require(0 <= token < vocab_size, field, f"token ids between 0 and {vocab_size - 1}", token)


def _require(is_valid: bool, field: str, rule: str, value: object) -> None:
    if not is_valid:
        raise RequestError(f"{field} must be {rule}, got {value}", field)

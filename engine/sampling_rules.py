"""The ranges of the sampling parameters, checked once at the door."""

from __future__ import annotations

from tinycluster.engine.errors import RequestError
from tinycluster.engine.request import SamplingParams

MAX_STOP_STRINGS = 4
MAX_SEED = 2**63 - 1


def check_sampling(params: SamplingParams, vocab_size: int) -> None:
    """RequestError naming the first field that is out of its range."""
    _require(0 <= params.temperature <= 2, "temperature", "between 0 and 2", params.temperature)
    _require(params.top_k >= -1, "top_k", "0 or -1 (off) or positive", params.top_k)
    _require(0 < params.top_p <= 1, "top_p", "above 0 and at most 1", params.top_p)
    _require(0 <= params.min_p <= 1, "min_p", "between 0 and 1", params.min_p)
    seed = 0 if params.seed is None else params.seed
    _require(0 <= seed <= MAX_SEED, "seed", f"between 0 and {MAX_SEED}", params.seed)
    max_tokens = 1 if params.max_tokens is None else params.max_tokens
    _require(max_tokens >= 1, "max_tokens", "at least 1", params.max_tokens)
    _require(len(params.stop) <= MAX_STOP_STRINGS, "stop", f"at most {MAX_STOP_STRINGS} strings", len(params.stop))
    _require(all(params.stop), "stop", "strings that are not empty", list(params.stop))
    for token in params.stop_token_ids:
        _require(0 <= token < vocab_size, "stop_token_ids", f"between 0 and {vocab_size - 1}", token)


def _require(is_valid: bool, field: str, rule: str, value: object) -> None:
    if not is_valid:
        raise RequestError(f"{field} must be {rule}, got {value}", field)

"""Which requests can be taken at all, and how long they may grow. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from tinycluster.engine.block_pool import BlockPool
from tinycluster.engine.errors import ContextLengthError, QueueFullError, RequestError
from tinycluster.engine.request import SamplingParams


@dataclass(frozen=True)
class SchedulerLimits:
    """What one engine may take on.

    max_model_len: positions of a request, prompt and answer together.
    max_running: requests that hold blocks at the same time. No more than `step_tokens` of them are admitted, so that
    each one can have a token in every step.
    step_tokens: tokens computed in one step.
    max_waiting: requests beyond `max_running` that are taken before QueueFullError.
    max_waiting_tokens: tokens of all waiting requests; the last one taken may exceed it.
    max_ttft_s: a request that would wait longer for its first token, by what steps have taken, is not taken.
    patience: requests admitted before one that has waited since, at most, and a quarter more.
    max_step_ratio: how many times longer than for its decoding requests alone a step may take for the sake of prompts.
    max_pending: 1 to plan a request's next token while the last one is still being computed, 0 to wait for it.
    retry_after_s: what QueueFullError tells the client.
    """

    max_model_len: int
    max_running: int = 64
    step_tokens: int = 512
    max_waiting: int = 256
    max_waiting_tokens: int = 2**20
    max_ttft_s: float | None = None
    patience: int = 256
    max_step_ratio: float = 2.5
    max_pending: int = 1
    retry_after_s: int = 1

    def __post_init__(self) -> None:
        for name in ("max_model_len", "max_running", "step_tokens", "retry_after_s", "patience", "max_waiting_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_waiting < 0:
            raise ValueError(f"max_waiting must not be negative, got {self.max_waiting}")
        if self.max_step_ratio <= 1:
            raise ValueError(f"max_step_ratio must be above 1, got {self.max_step_ratio}")
        if self.max_pending not in (0, 1):
            raise ValueError(f"max_pending must be 0 or 1, got {self.max_pending}")


def max_total_tokens(num_prompt_tokens: int, sampling: SamplingParams, limits: SchedulerLimits, pool: BlockPool) -> int:
    """The number of tokens, prompt included, at which the request ends with "length".

    That is the prompt plus `max_tokens`, or the context if it is smaller. Without `max_tokens` it is what context and
    cache hold. ContextLengthError: no room for one token after the prompt. RequestError: more than the whole cache.
    """
    if num_prompt_tokens < 1:
        raise RequestError("the prompt must have at least one token", "prompt")
    if num_prompt_tokens >= limits.max_model_len:
        raise ContextLengthError(
            f"This model's maximum context length is {limits.max_model_len} tokens, but {num_prompt_tokens + 1} were "
            f"requested: {num_prompt_tokens} in the prompt and at least 1 in the answer."
        )
    # The last token is sampled but never computed, so it needs no place in the cache.
    pool_limit = pool.num_blocks * pool.block_tokens + 1
    wanted = num_prompt_tokens + (1 if sampling.max_tokens is None else sampling.max_tokens)
    if min(wanted, limits.max_model_len) > pool_limit:
        raise RequestError(
            f"the request needs {min(wanted, limits.max_model_len) - 1} tokens of KV cache and the whole cache holds "
            f"{pool_limit - 1}; shorten it or raise kv_cache.memory",
            "max_tokens" if num_prompt_tokens < pool_limit else "prompt",
        )
    if sampling.max_tokens is None:
        return min(limits.max_model_len, pool_limit)
    return min(wanted, limits.max_model_len)


def check_queue(
    num_tokens: int,
    *,
    num_requests: int,
    num_waiting: int,
    waiting_tokens: int,
    token_s: float | None,
    limits: SchedulerLimits,
) -> None:
    """QueueFullError if one more request of `num_tokens` would wait behind too much. `token_s` is what a token of a
    prompt takes, if that is known."""
    seconds = (waiting_tokens + num_tokens) * (token_s or 0.0)
    if num_requests >= min(limits.max_running, limits.step_tokens) + limits.max_waiting:
        reason = f"the server is at its limit of {num_requests} requests, running and waiting"
    elif num_waiting and waiting_tokens + num_tokens > limits.max_waiting_tokens:
        reason = f"the server is at its limit of {limits.max_waiting_tokens} waiting tokens"
    elif num_waiting and limits.max_ttft_s is not None and seconds > limits.max_ttft_s:
        reason = f"the first token would take {seconds:.0f} s and limits.max_ttft is {limits.max_ttft_s:g} s"
    else:
        return
    # Half of what waits will have been computed by then.
    raise QueueFullError(f"{reason}; try again later", max(limits.retry_after_s, min(60, round(seconds / 2))))

"""How much one step takes, so that the steps in flight through a pipeline are about equally large. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from tinycluster.engine.scheduled_request import ScheduledRequest

MIN_MICRO_BATCH_TOKENS = 32
"""A prompt is not cut smaller for the pipeline's sake: below this, reading the weights costs more than computing."""


@dataclass(slots=True)
class StepBudget:
    """What is left of a step: tokens, rows of running requests that decode (one token each), tokens of long prompts."""

    num_tokens: int
    num_decodes: int
    num_long: int

    def share_of(self, num_uncomputed: int, *, is_long: bool) -> int:
        """How many of a running request's uncomputed tokens the step can take."""
        if num_uncomputed == 1 and self.num_decodes == 0:
            return 0
        return min(num_uncomputed, self.num_tokens, max(self.num_long, 0) if is_long else self.num_tokens)

    def limit_long(self, num_tokens: int) -> None:
        """No more than this for long prompts."""
        self.num_long = min(self.num_long, num_tokens)

    def spend(self, num_tokens: int, *, is_decode: bool, is_long: bool) -> None:
        self.num_tokens -= num_tokens
        self.num_decodes -= is_decode
        self.num_long -= num_tokens * is_long


def step_budget(
    running: Sequence[ScheduledRequest],
    waiting: Iterable[ScheduledRequest],
    *,
    in_flight_tokens: int,
    step_tokens: int,
    micro_batches: int,
) -> StepBudget:
    """The budget of the next step when `micro_batches` steps are to share the work at hand.

    Decodes and tokens are divided separately: each step carries its share of both. The work at hand includes what is
    in flight already: otherwise a prompt would be cut into ever smaller pieces.
    """
    if micro_batches == 1:
        return StepBudget(step_tokens, len(running), step_tokens)
    uncomputed = [max(request.num_uncomputed, 0) for request in running]
    # Every waiting request has a token at least, so no more of them can matter.
    waiting_tokens = sum(request.num_tokens for request in islice(waiting, step_tokens))
    share = _divide_up(sum(uncomputed) + waiting_tokens + in_flight_tokens, micro_batches)
    num_tokens = min(step_tokens, max(share, MIN_MICRO_BATCH_TOKENS))
    return StepBudget(num_tokens, _divide_up(uncomputed.count(1), micro_batches), num_tokens)


def _divide_up(amount: int, parts: int) -> int:
    return -(-amount // parts)

"""One request as the scheduler sees it: which tokens exist, which are computed, which blocks hold them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tinycluster.engine.request import PENDING, Row, SamplingParams

State = Literal["waiting", "running", "ended"]


@dataclass(eq=False, slots=True)
class ScheduledRequest:
    """`tokens` are the known ids (prompt, then generated); `num_pending` more are sampled by steps in flight.

    The request ends at `max_total_tokens` at the latest. Its last token is never computed: nothing follows it.
    """

    request_id: int
    tokens: list[int]
    sampling: SamplingParams
    seed: int
    max_total_tokens: int
    num_pending: int = 0
    num_computed: int = 0
    """Positions whose keys and values are in `blocks` once all planned steps have run."""
    blocks: tuple[int, ...] = ()
    state: State = "waiting"
    last_step_id: int = -1
    """The last step that computed something for this request."""
    num_prompt_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.tokens)

    @property
    def num_tokens(self) -> int:
        return len(self.tokens) + self.num_pending

    @property
    def num_uncomputed(self) -> int:
        return len(self.tokens) + self.num_pending - self.num_computed

    def can_advance(self, step_id: int, max_pending: int) -> bool:
        """Whether step `step_id` may compute more of this request.

        Not when its last token is already asked for. A token that is still unknown can be the input of the step
        directly after the one that samples it, where the ranks still hold it, and of no other.
        """
        if self.num_tokens >= self.max_total_tokens:
            return False
        return self.num_pending == 0 or (self.num_pending <= max_pending and self.last_step_id == step_id - 1)

    def advance(self, num_tokens: int, step_id: int) -> Row:
        """Plan the next `num_tokens` positions; `num_computed` moves at once, the steps run in order."""
        first, last = self.num_computed, self.num_computed + num_tokens
        tokens = tuple(self.tokens[first:last])
        if last > len(self.tokens):
            tokens += (PENDING,)
        sample = last == self.num_tokens
        self.num_computed, self.last_step_id = last, step_id
        self.num_pending += sample
        row = Row(
            self.request_id, tokens, first, self.blocks, int(sample), self.sampling, self.seed, self.num_prompt_tokens
        )
        if self.sampling.prompt_logprobs is not None and last < self.num_prompt_tokens:
            return row._replace(next_token=self.tokens[last])
        return row

"""One request as the scheduler sees it: which tokens exist, which are computed, which blocks hold them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tinycluster.engine.prefix_cache import Prefix
from tinycluster.engine.request import PENDING, Constraint, Row, SamplingParams
from tinycluster.engine.speculation import Speculation

State = Literal["held", "waiting", "running", "ended"]


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
    arrival: int
    """Its number in the order of all requests."""
    prefixes: list[Prefix]
    """Of the known text, from its root on: one more for every full block that was looked up or remembered."""
    priority: int = 0
    client: str = ""
    constraint: Constraint | None = None
    speculation: Speculation | None = None
    parent: ScheduledRequest | None = None
    """Whose prompt is the same and is computed first; held until then."""
    children: list[ScheduledRequest] = field(default_factory=list)
    reports_progress: bool = False
    is_conversation: bool = False
    is_lifted: bool = False
    """Passed over so often that it goes before all priorities."""
    num_admitted_before: int = 0
    num_pending: int = 0
    num_drafts: int = 0
    """Of the step in flight that verifies them; how many tokens it gives is not known before its result."""
    num_computed: int = 0
    """Positions whose keys and values are in `blocks` once all planned steps have run."""
    num_missing: int = 0
    """Tokens that it had to compute when it was admitted."""
    blocks: tuple[int, ...] = ()
    num_remembered: int = 0
    """Blocks from the first on whose content the pool knows, in these or in other blocks."""
    num_dropped: int = 0
    """Blocks from the first on that no window reaches any more; their numbers in `blocks` mean nothing."""
    num_cached: int | None = None
    """Tokens of the prompt that were found in the prefix cache when it was first admitted."""
    num_prompt_logprobs: int = 0
    """Prompt tokens whose log-probabilities have been given."""
    num_queued: int = 0
    """Its tokens when it began to wait."""
    is_prompt_settled: bool = False
    """The prompt was computed by steps before the one that is being planned."""
    history_is_due: bool = False
    state: State = "waiting"
    last_step_id: int = -1
    """The last step that computed something for this request."""
    num_prompt_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.tokens)

    @property
    def place(self) -> tuple[bool, int, int]:
        """The order among requests of one client, and among running ones: the first takes blocks from the last."""
        return not self.is_lifted, 0 if self.is_lifted else self.priority, self.arrival

    @property
    def num_tokens(self) -> int:
        return len(self.tokens) + self.num_pending

    @property
    def num_uncomputed(self) -> int:
        return len(self.tokens) + self.num_pending - self.num_computed

    @property
    def owned_blocks(self) -> tuple[int, ...]:
        return self.blocks[self.num_dropped :]

    @property
    def is_prompt_computed(self) -> bool:
        return self.num_computed >= self.num_prompt_tokens

    def prefix(self, num_blocks: int, block_tokens: int) -> Prefix:
        """What the first `num_blocks` blocks hold, all of whose tokens are known."""
        for index in range(len(self.prefixes) - 1, num_blocks):
            tokens = self.tokens[index * block_tokens : (index + 1) * block_tokens]
            self.prefixes.append(self.prefixes[-1].then(tokens))
        return self.prefixes[num_blocks]

    def learn_prefix(self, num_blocks: int, known: Prefix) -> None:
        """Use an equal prefix that others have too: what follows it is then the same object for all of them."""
        if self.prefixes[num_blocks] is not known:
            self.prefixes[num_blocks:] = [known]

    def can_advance(self, step_id: int, max_pending: int) -> bool:
        """Whether step `step_id` may compute more of this request.

        Not when its last token is already asked for. A token that is still unknown can be the input of the step
        directly after the one that samples it, where the ranks still hold it, and of no other. Drafts and masks are
        made of known tokens only.
        """
        if self.num_tokens >= self.max_total_tokens:
            return False
        if self.num_pending == 0:
            return True
        if self.constraint is not None or (self.speculation is not None and self.speculation.wants_tokens):
            return False
        return self.num_pending <= max_pending and self.last_step_id == step_id - 1

    def advance(self, num_tokens: int, step_id: int, drafts: tuple[int, ...] = ()) -> Row:
        """Plan the next `num_tokens` positions, and the drafts after them if they reach the last token.

        `num_computed` moves at once, the steps run in order.
        """
        first, last = self.num_computed, self.num_computed + num_tokens
        tokens = tuple(self.tokens[first:last])
        if last > len(self.tokens):
            tokens += (PENDING,)
        sample = last == self.num_tokens
        mask = self.constraint.mask() if sample and self.constraint is not None else None
        history = tuple(self.tokens[:first]) if self.history_is_due else None
        self.history_is_due = False
        self.num_computed, self.last_step_id, self.num_drafts = last + len(drafts), step_id, len(drafts)
        self.num_pending += sample
        return Row(
            self.request_id,
            tokens + drafts,
            first,
            self.blocks,
            sample + len(drafts),
            self.sampling,
            self.seed,
            self.num_prompt_tokens,
            history,
            mask,
            self._next_prompt_token(last),
        )

    def _next_prompt_token(self, end: int) -> int | None:
        """What the logits of the last of `end` tokens are compared with."""
        is_wanted = self.sampling.prompt_logprobs is not None and end < self.num_prompt_tokens
        return self.tokens[end] if is_wanted else None

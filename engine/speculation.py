"""Drafts by looking back: text that repeats itself, or its prompt, is guessed from its last occurrence and verified in
one step (prompt lookup: Saxena 2023; verification keeps every token as it would be: Leviathan et al. 2023). Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tinycluster.engine.step_times import StepTimes

NGRAM = 3
"""Tokens that must repeat before what followed them is drafted."""
MAX_DRAFTS = 8
NEWEST = 0.25
"""The share of the newest step in the average acceptance."""
FIRST_ACCEPTANCE = 0.5
SHORTEST_PAUSE, LONGEST_PAUSE = 16, 256
"""Tokens without drafts after a step that accepted none; it doubles until one is accepted."""


@dataclass(slots=True)
class DraftCounts:
    """Of all requests since the start: steps of a request with drafts, the drafts, and those that were right."""

    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0


class Speculation:
    """One request's guesses, and whether they pay. `tokens` passed to the methods are the request's own known ids."""

    def __init__(self, counts: DraftCounts) -> None:
        self._counts = counts
        self._followed_by: dict[tuple[int, ...], int] = {}
        """Where the text goes on after the last occurrence of these tokens that something follows."""
        self._num_indexed = 0
        self._resume_at = 0
        self._pause = SHORTEST_PAUSE
        self._next_drafts: tuple[int, ...] = ()
        self.acceptance = FIRST_ACCEPTANCE
        """How likely a draft is accepted if those before it are: an average over the steps so far."""

    @property
    def wants_tokens(self) -> bool:
        """Whether there are drafts for what comes next: a step planned before its token is known would skip them."""
        return bool(self._next_drafts)

    def look(self, tokens: Sequence[int]) -> None:
        """Index what is new and look for the last tokens earlier in the text."""
        for end in range(max(self._num_indexed, NGRAM), len(tokens)):
            self._followed_by[tuple(tokens[end - NGRAM : end])] = end
        self._num_indexed = max(self._num_indexed, len(tokens))
        self._next_drafts = ()
        if len(tokens) >= max(self._resume_at, NGRAM):
            found = self._followed_by.get(tuple(tokens[-NGRAM:]))
            if found is not None:
                self._next_drafts = _repeat(tokens, found)

    def drafts(self, most: int) -> tuple[int, ...]:
        """At most `most` guesses of the tokens after the known ones."""
        return self._next_drafts[: max(most, 0)]

    def judge(self, num_drafts: int, num_accepted: int, num_tokens: int) -> None:
        """What verification said; `num_tokens` are known by now."""
        self._counts.num_drafts += 1
        self._counts.num_draft_tokens += num_drafts
        self._counts.num_accepted_tokens += num_accepted
        num_tried = min(num_accepted + 1, num_drafts)
        self.acceptance += NEWEST * (num_accepted / num_tried - self.acceptance)
        if num_accepted > 0:
            self._pause = SHORTEST_PAUSE
        else:
            # The pause is the price: the next try is as good as the first.
            self.acceptance = max(self.acceptance, FIRST_ACCEPTANCE)
            self.pause(num_tokens)

    def pause(self, num_tokens: int) -> None:
        """No drafts for a while after the first `num_tokens` tokens."""
        self._next_drafts = ()
        self._resume_at = num_tokens + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE)


def _repeat(tokens: Sequence[int], begin: int) -> tuple[int, ...]:
    """What follows if the text goes on as from `begin`; a short period goes on repeating."""
    drafts = list(tokens[begin : begin + MAX_DRAFTS])
    period = len(drafts)
    while len(drafts) < MAX_DRAFTS:
        drafts.append(drafts[-period])
    return tuple(drafts)


def best_num_drafts(acceptance: float, most: int, times: StepTimes, num_rows: int) -> int:
    """How many drafts give a step of `num_rows` decoding rows the most tokens per second, 0 where none helps or where
    no such steps were seen yet.

    The drafts' step cannot be planned ahead, so it must be better by more than a twentieth.
    """
    base_s, token_s = times.decode_s(num_rows), times.token_s
    if not base_s or not token_s:
        return 0
    best, best_rate = 0, 1.05 * num_rows / base_s
    expected = float(num_rows)
    for count in range(1, most + 1):
        expected += acceptance**count
        rate = expected / (base_s + count * token_s)
        if rate > best_rate:
            best, best_rate = count, rate
    return best

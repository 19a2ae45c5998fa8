"""What steps take, learned from those that were run: the size of a chunk of a prompt, the number of drafts and the time
that a request would wait follow from it. Pure: the durations are passed in.
"""

from __future__ import annotations

NEWEST = 0.2
"""The share of the newest step in an average."""
LONGEST = 2.0
"""A step that took so many times the average counts as that: another program had a core meanwhile."""
MIN_EXTRA_TOKENS = 4
"""Of fewer tokens beside the decoding ones, the time is lost in the noise."""

MAX_PAUSE_S = 0.25
"""A prompt that takes no longer is not cut for the sake of others: they pause once, and chunks cost more in all."""
MIN_CHUNK_TOKENS = 8
"""A long prompt that enters alone advances by so many tokens in a step at least."""


class StepTimes:
    """Seconds of a step: of its decoding rows by their number, and what every further token adds."""

    def __init__(self) -> None:
        self._decode_s: dict[int, float] = {}
        """By the number of bits of the number of decoding rows."""
        self._token_s: float | None = None

    def observe(self, num_decodes: int, num_others: int, seconds: float) -> None:
        """A step of `num_decodes` rows that decode and of `num_others` further tokens."""
        if num_others == 0:
            bits = num_decodes.bit_length()
            self._decode_s[bits] = _average(self._decode_s.get(bits), seconds)
        elif num_others >= MIN_EXTRA_TOKENS:
            base_s = self.decode_s(num_decodes) or 0.0
            self._token_s = _average(self._token_s, max(seconds - base_s, 0.0) / num_others)

    def decode_s(self, num_decodes: int) -> float | None:
        """A step of decoding rows alone: of the nearest number that was seen. None before any was."""
        if num_decodes == 0:
            return 0.0
        bits = num_decodes.bit_length()
        nearest = min(self._decode_s, key=lambda seen: abs(seen - bits), default=None)
        return None if nearest is None else self._decode_s[nearest]

    @property
    def token_s(self) -> float | None:
        """A token of a prompt, or a draft. None before any was seen."""
        return self._token_s

    def is_long(self, num_tokens: int) -> bool:
        """Whether a prompt of so many tokens, computed at once, would stop those who decode for too long."""
        return self._token_s is not None and num_tokens * self._token_s > MAX_PAUSE_S

    def tokens_within(self, num_decodes: int, ratio: float) -> int | None:
        """How many further tokens let a step take `ratio` times as long as its decoding rows alone; None if unknown."""
        base_s = self.decode_s(num_decodes)
        if num_decodes == 0 or not base_s or not self._token_s:
            return None
        return int((ratio - 1) * base_s / self._token_s)

    def chunk_tokens(self, num_decodes: int, num_others: int, ratio: float) -> int | None:
        """Tokens of long prompts beside `num_decodes` rows that decode and `num_others` that do not; None: any number.

        Who decodes must not wait much longer because a long prompt is computed in the same step. But small chunks take
        more time in all: the more requests wait for their first token, the larger the chunks.
        """
        most = self.tokens_within(num_decodes, ratio)
        return None if most is None else max(most, MIN_CHUNK_TOKENS * num_others**2)


def _average(old: float | None, new: float) -> float:
    return new if old is None else old + NEWEST * (min(new, LONGEST * old) - old)

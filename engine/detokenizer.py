"""Text from tokens as they come: whole characters only, and never a part of a stop string.

The output of a whole request equals Tokenizer.decode of all its tokens, cut at the stop string that is complete first
(of two that end at the same character, the one that begins first). Each token costs time in proportion to its own text.
"""

from __future__ import annotations

import codecs

from tinycluster.engine.errors import RequestError
from tinycluster.engine.tokenizer import Tokenizer


class Detokenizer:
    """One request's text. `stopped_by` is the stop string that ended it; nothing is emitted afterwards."""

    def __init__(
        self, tokenizer: Tokenizer, stop: tuple[str, ...], include_stop: bool, skip_special_tokens: bool = True
    ) -> None:
        """RequestError for an empty stop string, which every text contains."""
        if not all(stop):
            raise RequestError("stop strings must not be empty", "stop")
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._include_stop = include_stop
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._strips_space = tokenizer.strips_leading_space
        self._matches = [_StopMatch(text) for text in stop]
        self._held = ""
        self.stopped_by: str | None = None

    def push(self, token_id: int) -> str:
        """The text that this token makes safe to show; what could still become a stop string is held back."""
        if self.stopped_by is not None:
            return ""
        piece = self._tokenizer.token_bytes(token_id, skip_special_tokens=self._skip_special_tokens)
        return self._emit(self._decoder.decode(piece))

    def flush(self) -> str:
        """The rest, at the end of the request: half a character becomes U+FFFD, held text is shown."""
        if self.stopped_by is not None:
            return ""
        shown = self._emit(self._decoder.decode(b"", True))
        rest, self._held = self._held, ""
        return shown + rest

    def _emit(self, text: str) -> str:
        if text and self._strips_space:
            text, self._strips_space = text.removeprefix(" "), False
        if not self._matches:
            return text
        pending = self._held + text
        for index, character in enumerate(text, start=len(self._held) + 1):
            for match in self._matches:
                match.feed(character)
            if complete := [match for match in self._matches if match.is_complete]:
                return self._stop(pending[:index], max(complete, key=lambda match: len(match.text)))
        num_held = max((match.num_matched for match in self._matches), default=0)
        shown = len(pending) - num_held
        self._held = pending[shown:]
        return pending[:shown]

    def _stop(self, text: str, match: _StopMatch) -> str:
        self.stopped_by, self._held = match.text, ""
        return text if self._include_stop else text[: len(text) - len(match.text)]


class _StopMatch:
    """How much of a stop string the text ends with, one character at a time (Knuth, Morris & Pratt 1977)."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.num_matched = 0
        self._borders = _borders(text)

    @property
    def is_complete(self) -> bool:
        return self.num_matched == len(self.text)

    def feed(self, character: str) -> None:
        self.num_matched = _advance(self.text, self._borders, self.num_matched, character)


def _borders(text: str) -> list[int]:
    """borders[n]: the longest proper prefix of text[:n] that is also its suffix."""
    borders = [0] * (len(text) + 1)
    for n in range(1, len(text)):
        borders[n + 1] = _advance(text, borders, borders[n], text[n])
    return borders


def _advance(text: str, borders: list[int], num_matched: int, character: str) -> int:
    while num_matched and text[num_matched] != character:
        num_matched = borders[num_matched]
    return num_matched + (text[num_matched] == character)

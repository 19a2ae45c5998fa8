"""Control tokens spelled out in a user's text stay text.

A template writes control tokens as text around the messages, so a message that contains "<|im_end|>" could end its own
turn and speak as the system. Before rendering, every such spelling in the messages is cut after its first character
with a mark; after rendering, the text between marks is encoded piece by piece, so no tokenizer sees the spelling whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

# A noncharacter: Unicode keeps it out of interchanged text, so removing it from messages loses nothing.
MARK = "\ufdd0"


class ForeignText:
    """Marks the spellings of `control_tokens`; those of a single character cannot be cut and are left alone."""

    def __init__(self, control_tokens: Iterable[str]) -> None:
        longest_first = sorted((token for token in control_tokens if len(token) > 1), key=len, reverse=True)
        # A lookahead finds spellings that overlap, too.
        self._begins = (
            re.compile(f"(?={'|'.join(map(re.escape, longest_first))})(.)", re.DOTALL) if longest_first else None
        )

    def mark(self, value: Any) -> Any:
        """A copy of messages or tools with every text in them marked."""
        if isinstance(value, str):
            text = value.replace(MARK, "")
            return text if self._begins is None else self._begins.sub(rf"\1{MARK}", text)
        if isinstance(value, Mapping):
            return {key: self.mark(part) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return [self.mark(part) for part in value]
        return value


def pieces(rendered: str) -> list[str]:
    """The text between marks; joined, they are the text that the template meant."""
    return [piece for piece in rendered.split(MARK) if piece]

"""Control tokens spelled out in a user's text stay text.

A template writes control tokens as text around the messages, so a message that contains "<|im_end|>" could end its own
turn and speak as the system. Before rendering, every such spelling in the messages is cut after its first character
with a mark; after rendering, the text between marks is encoded piece by piece, so no tokenizer sees the spelling whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tinycluster.engine.errors import RequestError

# Noncharacters: Unicode keeps them out of interchanged text, so removing them from messages loses nothing.
MARK = "\ufdd0"
FINAL_END = "\ufdd1"


class ForeignText:
    """Marks the spellings of `control_tokens`; those of a single character cannot be cut and are left alone."""

    def __init__(self, control_tokens: Iterable[str]) -> None:
        longest_first = sorted((token for token in control_tokens if len(token) > 1), key=len, reverse=True)
        # A lookahead finds spellings that overlap, too.
        self._begins = (
            re.compile(f"(?={'|'.join(map(re.escape, longest_first))})(.)", re.DOTALL) if longest_first else None
        )

    def mark(self, value: Any) -> Any:
        """A copy of messages or tools with every text and key in them marked."""
        if isinstance(value, str):
            text = value.replace(MARK, "").replace(FINAL_END, "")
            return text if self._begins is None else self._begins.sub(rf"\1{MARK}", text)
        if isinstance(value, Mapping):
            return {self.mark(key): self.mark(part) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return [self.mark(part) for part in value]
        return value


def pieces(rendered: str) -> list[str]:
    """The text between marks; joined, they are the text that the template meant."""
    return [piece for piece in rendered.split(MARK) if piece]


def with_final_end(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The marked messages with the end of the last one's content marked, too; `until_final_end` finds it again."""
    *others, final = messages
    return [*others, {**final, "content": f"{final.get('content') or ''}{FINAL_END}"}]


def until_final_end(rendered: str) -> str:
    """The text up to the end of the final message. RequestError where the template has left the message out."""
    # A template may print a message twice, a summary first: its turn is the last.
    text, end, _ = rendered.rpartition(FINAL_END)
    if not end:
        raise RequestError("the model's chat template does not show the final message", "continue_final_message")
    return text.replace(FINAL_END, "")

"""The text of an answer while it grows: appended to at its end, read from any character on."""

from __future__ import annotations

from io import StringIO


class GrowingText:
    """Characters are Unicode code points, as len() counts them. Reading does not depend on how the text was cut."""

    def __init__(self) -> None:
        # Left at its end by every read, where the next write begins.
        self._buffer = StringIO()
        self.num_chars = 0

    def append(self, text: str) -> None:
        self._buffer.write(text)
        self.num_chars += len(text)

    def since(self, offset: int) -> str:
        """What comes after the first `offset` characters."""
        if offset >= self.num_chars:
            return ""
        self._buffer.seek(offset)
        return self._buffer.read()

    def __str__(self) -> str:
        return self._buffer.getvalue()

"""Reads what another process sent: fixed little-endian records, from left to right, and nothing is evaluated."""

from __future__ import annotations

import struct
from typing import Any

_LENGTH = struct.Struct("<I")


class ProtocolError(Exception):
    """The other side sent something that is not a message of this version."""


class Reader:
    """Consumes a payload from left to right; ProtocolError past its end."""

    def __init__(self, payload: memoryview) -> None:
        self._payload, self._offset = payload, 0

    def fields(self, record: struct.Struct) -> tuple[Any, ...]:
        return record.unpack(self.take(record.size))

    def array(self, kind: str, count: int) -> tuple[Any, ...]:
        """`count` numbers of one kind of `struct`."""
        num_bytes = count * struct.calcsize(f"<{kind}")
        return struct.unpack(f"<{count}{kind}", self.take(num_bytes)) if count else ()

    def rest(self) -> bytes:
        return bytes(self.take(len(self._payload) - self._offset))

    def take(self, num_bytes: int) -> memoryview:
        end = self._offset + num_bytes
        if not self._offset <= end <= len(self._payload):
            raise ProtocolError("a message ends before its last field")
        piece = self._payload[self._offset : end]
        self._offset = end
        return piece

    def block(self) -> bytes:
        (num_bytes,) = self.fields(_LENGTH)
        return bytes(self.take(num_bytes))

    def text(self) -> str:
        try:
            return self.block().decode()
        except UnicodeDecodeError:
            raise ProtocolError("a text field is not UTF-8") from None

    def finish(self) -> None:
        if self._offset != len(self._payload):
            raise ProtocolError("a message goes on after its last field")


def as_block(content: bytes) -> bytes:
    """What Reader.block reads."""
    return _LENGTH.pack(len(content)) + content

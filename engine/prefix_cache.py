"""Which block holds which beginning of a text.

A key is SHA-256 over the key of what stands before and a block's tokens, so a block is found only by requests whose
whole text up to its end is the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """A text up to the end of a block: `tokens` are the block's own, `parent` is what stands before them.

    The root of a chain has no tokens; its key is made of the model's digest and the salt of those who may share.
    """

    key: bytes
    tokens: tuple[int, ...]
    parent: Prefix | None

    def then(self, tokens: Sequence[int]) -> Prefix:
        """The prefix that is longer by one block."""
        own = tuple(tokens)
        return Prefix(_key(self.key, np.array(own, "<i4").tobytes()), own, self)

    def is_same(self, other: Prefix) -> bool:
        """Whether both stand for the same tokens after the same root: keys alone are not trusted."""
        mine: Prefix | None = self
        theirs: Prefix | None = other
        while mine is not theirs:
            if mine is None or theirs is None or mine.key != theirs.key or mine.tokens != theirs.tokens:
                return False
            mine, theirs = mine.parent, theirs.parent
        return True


def root(model_digest: str, salt: str) -> Prefix:
    """Where the texts of one model begin that share a salt."""
    # The salt is hashed by itself: no digest and salt joined can look like another pair.
    return Prefix(_key(model_digest.encode(), hashlib.sha256(salt.encode()).digest()), (), None)


def _key(before: bytes, content: bytes) -> bytes:
    return hashlib.sha256(before + content).digest()


class PrefixCache:
    """A table in both directions. Of two blocks with the same content, the first keeps the key."""

    def __init__(self) -> None:
        self._block_of: dict[bytes, int] = {}
        self._prefix_of: dict[int, Prefix] = {}

    def find(self, prefix: Prefix) -> tuple[int, Prefix] | None:
        """A block of this content, and the prefix as it was remembered: chains that share it are compared at once."""
        block = self._block_of.get(prefix.key)
        if block is None or not (known := self._prefix_of[block]).is_same(prefix):
            return None
        return block, known

    def knows(self, block: int) -> bool:
        return block in self._prefix_of

    def add(self, prefix: Prefix, block: int) -> Prefix:
        """The prefix as it is remembered, which is an older one where the content was known already."""
        if (found := self.find(prefix)) is not None:
            return found[1]
        if prefix.key not in self._block_of:
            assert block not in self._prefix_of, "a block of known content was written again"
            self._block_of[prefix.key] = block
            self._prefix_of[block] = prefix
        return prefix

    def forget(self, block: int) -> None:
        del self._block_of[self._prefix_of.pop(block).key]

    def check(self) -> None:
        """AssertionError unless both directions agree and every key can be computed again from its tokens."""
        assert {block: self._prefix_of[block].key for block in self._block_of.values()} == {
            block: key for key, block in self._block_of.items()
        }, "a key leads to another block's content"
        for prefix in self._prefix_of.values():
            assert prefix.parent is not None
            assert prefix.parent.then(prefix.tokens).key == prefix.key, "a key does not fit its tokens"

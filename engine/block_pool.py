"""The KV cache as a pool of equal blocks, lent to requests by number. Pure: the memory itself lives in the ranks.

Blocks whose content is known by a key stay findable when nobody uses them, until their memory is needed: the prefix
cache is what is left of earlier requests. What conversations leave is kept longer, since they will be continued.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from tinycluster.engine.prefix_cache import Prefix, PrefixCache

KEPT_SHARE = 0.5
"""The part of the pool in which conversations that nobody continues now may outlast everything else."""


class BlockPool:
    """`num_blocks` blocks of `block_tokens` positions each.

    Conservation law: every block is blank, unused with a content that is known, or owned by at least one request. A
    block of known content is never written again. Blocks are handed out in a fixed order, so equal histories give equal
    block tables.
    """

    def __init__(self, num_blocks: int, block_tokens: int) -> None:
        if num_blocks < 1 or block_tokens < 1:
            raise ValueError(f"a pool needs blocks and tokens, got {num_blocks} blocks of {block_tokens} tokens")
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        # The block that was freed last is lent first: its memory is the most likely to be in a processor's cache.
        self._blank = list(range(num_blocks - 1, -1, -1))
        self._num_owners = [0] * num_blocks
        self._unused: dict[int, None] = {}
        """Blocks of known content that nobody owns, the least recently used first."""
        self._kept: dict[int, None] = {}
        """The same, of conversations."""
        self._of_conversations: set[int] = set()
        self._cache = PrefixCache()

    @property
    def num_free(self) -> int:
        """Blocks that can be lent."""
        return len(self._blank) + self.num_cached

    @property
    def num_cached(self) -> int:
        """Of the free blocks, those whose content is known."""
        return len(self._unused) + len(self._kept)

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.num_free

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks hold `num_tokens` positions."""
        return -(-num_tokens // self.block_tokens)

    def allocate(self, num_blocks: int) -> tuple[int, ...] | None:
        """`num_blocks` different free blocks, or None (and nothing taken) when there are fewer.

        Blank ones first, then those of known content that were used least recently, which are forgotten: those of
        conversations last, unless these take more than their share.
        """
        if num_blocks > self.num_free:
            return None
        blocks = tuple(self._blank.pop() if self._blank else self._evict() for _ in range(num_blocks))
        for block in blocks:
            self._num_owners[block] = 1
        return blocks

    def find(self, prefix: Prefix) -> tuple[int, Prefix] | None:
        """A block with this content, to be shared at once, and the prefix as it was remembered."""
        return self._cache.find(prefix)

    def num_unused(self, blocks: Iterable[int]) -> int:
        """How many of these nobody owns, so that to share them makes fewer free."""
        return sum(self._num_owners[block] == 0 for block in blocks)

    def share(self, blocks: Iterable[int]) -> None:
        """Blocks of known content get one more owner."""
        for block in blocks:
            self._unused.pop(block, None)
            self._kept.pop(block, None)
            self._num_owners[block] += 1

    def remember(self, prefix: Prefix, block: int) -> Prefix:
        """The content of an owned block, which is written once all steps planned so far have run. As PrefixCache.add"""
        return self._cache.add(prefix, block)

    def free(self, blocks: Sequence[int], *, of_conversation: bool = False) -> None:
        """Take back blocks of one owner. ValueError for a block that is not lent."""
        # The last block of a prompt is worth less than the first, without which it is never found: it goes first.
        for block in reversed(blocks):
            if not 0 <= block < self.num_blocks or self._num_owners[block] == 0:
                raise ValueError(f"block {block} is not lent")
            self._num_owners[block] -= 1
            is_known = self._cache.knows(block)
            if of_conversation and is_known:
                self._of_conversations.add(block)
            if self._num_owners[block] == 0:
                self._put_away(block, is_known)

    def check(self, tables: Iterable[Sequence[int]]) -> None:
        """AssertionError unless every block is blank, unused or in as many of the owners' `tables` as it has owners."""
        owners = Counter(block for table in tables for block in table)
        assert [owners[block] for block in range(self.num_blocks)] == self._num_owners, (
            "a block's owners are not counted right"
        )
        assert sorted([*self._blank, *self._unused, *self._kept, *owners]) == list(range(self.num_blocks)), (
            f"{len(self._blank)} blank, {self.num_cached} unused and {len(owners)} owned blocks are not the "
            f"{self.num_blocks} blocks of the pool"
        )
        assert all(map(self._cache.knows, (*self._unused, *self._kept))), "an unused block has no content"
        assert all(map(self._cache.knows, self._of_conversations)), "a conversation's block has no content"
        assert not any(self._cache.knows(block) for block in self._blank), "a blank block has a content"
        self._cache.check()

    def _put_away(self, block: int, is_known: bool) -> None:
        if not is_known:
            self._blank.append(block)
        elif block in self._of_conversations:
            self._kept[block] = None
        else:
            self._unused[block] = None

    def _evict(self) -> int:
        has_too_many = len(self._kept) > KEPT_SHARE * self.num_blocks
        queue = self._kept if has_too_many or not self._unused else self._unused
        block = next(iter(queue))
        del queue[block]
        self._of_conversations.discard(block)
        self._cache.forget(block)
        return block

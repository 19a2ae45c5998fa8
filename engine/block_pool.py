"""The KV cache as a pool of equal blocks, lent to requests by number. Pure: the memory itself lives in the ranks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class BlockPool:
    """`num_blocks` blocks of `block_tokens` positions each.

    Conservation law: every block is either free or owned by exactly one request. Blocks are handed out in a fixed
    order, so equal histories give equal block tables.
    """

    def __init__(self, num_blocks: int, block_tokens: int) -> None:
        if num_blocks < 1 or block_tokens < 1:
            raise ValueError(f"a pool needs blocks and tokens, got {num_blocks} blocks of {block_tokens} tokens")
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        # The block that was freed last is lent first: its memory is the most likely to be in a processor's cache.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._is_free = [True] * num_blocks

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.num_blocks - len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks hold `num_tokens` positions."""
        return -(-num_tokens // self.block_tokens)

    def allocate(self, num_blocks: int) -> tuple[int, ...] | None:
        """`num_blocks` different free blocks, or None (and nothing taken) when there are fewer."""
        if num_blocks > len(self._free):
            return None
        blocks = tuple(self._free.pop() for _ in range(num_blocks))
        for block in blocks:
            self._is_free[block] = False
        return blocks

    def free(self, blocks: Iterable[int]) -> None:
        """Take back blocks. ValueError for a block that is not lent."""
        for block in blocks:
            if not 0 <= block < self.num_blocks or self._is_free[block]:
                raise ValueError(f"block {block} is not lent")
            self._is_free[block] = True
            self._free.append(block)

    def check(self, tables: Iterable[Sequence[int]]) -> None:
        """AssertionError unless the free blocks and the owners' `tables` together hold every block exactly once."""
        owned = [block for table in tables for block in table]
        assert sorted(self._free + owned) == list(range(self.num_blocks)), (
            f"{len(self._free)} free and {len(owned)} owned blocks are not the {self.num_blocks} blocks of the pool"
        )
        assert all(self._is_free[block] for block in self._free), "a free block is marked as lent"

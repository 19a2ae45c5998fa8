"""Which blocks a request holds, from its admission to its end. Pure."""

from __future__ import annotations

from tinycluster.engine.block_pool import BlockPool
from tinycluster.engine.scheduled_request import ScheduledRequest

ATTENTION_BLOCK_TOKENS = 64
"""Attention reads keys in blocks of so many positions, of which a window may begin within one."""
UNREACHED = 0
"""What a block table holds where no window reaches: any number of a block, whose content is never used."""


class BlockTables:
    """Lends the pool's blocks. `window` is the number of positions that every layer sees, None for all of them."""

    def __init__(self, pool: BlockPool, *, window: int | None, has_prefix_cache: bool) -> None:
        self._pool, self._window, self._has_prefix_cache = pool, window, has_prefix_cache
        self._copies: list[tuple[int, int]] = []

    def take_copies(self) -> tuple[tuple[int, int], ...]:
        """Blocks to be copied before the next step."""
        copies, self._copies = tuple(self._copies), []
        return copies

    def admit(self, request: ScheduledRequest, num_running: int) -> bool:
        """Give a request that has none the blocks of all its tokens: a half-computed prompt never waits for one.

        What the prefix cache knows of them counts as computed. One block for each running request is left: they will
        need it first, and would take it back.
        """
        known = self._known_blocks(request)
        num_new = self._pool.blocks_for(request.num_tokens) - len(known)
        if num_new + self._pool.num_unused(known) + num_running > self._pool.num_free:
            return False
        self._pool.share(known)
        new = self._pool.allocate(num_new)
        assert new is not None
        request.blocks = known + new
        request.num_remembered = len(known)
        request.num_computed = len(known) * self._pool.block_tokens
        self._copy_from_parent(request)
        request.num_missing = request.num_uncomputed
        request.history_is_due = request.sampling.needs_history
        if request.num_cached is None:
            request.num_cached = request.num_computed
        return True

    def extend(self, request: ScheduledRequest, num_tokens: int) -> bool:
        """Blocks for `num_tokens` tokens of a request that has its first ones; False where the pool has too few."""
        missing = self._pool.blocks_for(num_tokens) - len(request.blocks)
        if missing <= 0:
            return True
        blocks = self._pool.allocate(missing)
        if blocks is None:
            return False
        request.blocks += blocks
        return True

    def remember(self, request: ScheduledRequest) -> None:
        """Tell the pool which full blocks of known tokens are computed once all planned steps have run."""
        if not self._has_prefix_cache:
            return
        num_full = min(request.num_computed, len(request.tokens)) // self._pool.block_tokens
        for index in range(request.num_remembered, num_full):
            prefix = request.prefix(index + 1, self._pool.block_tokens)
            request.learn_prefix(index + 1, self._pool.remember(prefix, request.blocks[index]))
        request.num_remembered = max(request.num_remembered, num_full)

    def drop_unreached(self, request: ScheduledRequest) -> None:
        """Free the blocks that lie before the window of the next position. Steps in flight read them before others
        write: steps run in order."""
        if self._window is None:
            return
        first = max(0, request.num_computed + 1 - self._window)
        first -= first % ATTENTION_BLOCK_TOKENS
        num_unreached = min(first // self._pool.block_tokens, len(request.blocks))
        if self._has_prefix_cache:
            num_unreached = min(num_unreached, request.num_remembered)
        if num_unreached > request.num_dropped:
            unreached = request.blocks[request.num_dropped : num_unreached]
            self._pool.free(unreached, of_conversation=request.is_conversation)
            request.blocks = (UNREACHED,) * num_unreached + request.blocks[num_unreached:]
            request.num_dropped = num_unreached

    def release(self, request: ScheduledRequest) -> None:
        """A step in flight may still write to these blocks; it does so before the step of any new owner."""
        self._pool.free(request.owned_blocks, of_conversation=request.is_conversation)
        request.blocks = ()
        request.num_computed = request.num_remembered = request.num_dropped = request.num_drafts = 0
        request.is_prompt_settled = False

    def _known_blocks(self, request: ScheduledRequest) -> tuple[int, ...]:
        """The longest run of blocks that the prefix cache knows. The last token is computed anew, for its logits.

        Log-probabilities of a prompt are made of logits that the cache does not have.
        """
        if not self._has_prefix_cache:
            return ()
        last = len(request.tokens) - 1
        if request.sampling.prompt_logprobs is not None:
            last = min(last, request.num_prompt_logprobs)
        blocks: list[int] = []
        for num_blocks in range(1, last // self._pool.block_tokens + 1):
            found = self._pool.find(request.prefix(num_blocks, self._pool.block_tokens))
            if found is None:
                break
            blocks.append(found[0])
            request.learn_prefix(num_blocks, found[1])
        return tuple(blocks)

    def _copy_from_parent(self, request: ScheduledRequest) -> None:
        """Of a prompt that another request has computed, the begun block is copied: both go on writing to it."""
        parent, index = request.parent, request.num_remembered
        last = request.num_prompt_tokens - 1
        if parent is None or request.num_tokens > request.num_prompt_tokens or request.num_computed == last:
            return
        is_at_hand = parent.is_prompt_settled and parent.num_dropped <= index
        if is_at_hand and index == last // self._pool.block_tokens and request.sampling.prompt_logprobs is None:
            self._copies.append((parent.blocks[index], request.blocks[index]))
            request.num_computed = last

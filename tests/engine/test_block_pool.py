"""Blocks are lent once, come back once, and never get lost."""

from __future__ import annotations

import random

import pytest

from tinycluster.engine.block_pool import BlockPool


def test_lent_blocks_are_different_and_all_blocks_can_be_lent() -> None:
    pool = BlockPool(num_blocks=7, block_tokens=16)
    first, second = pool.allocate(3), pool.allocate(4)
    assert first is not None
    assert second is not None
    assert sorted(first + second) == list(range(7))
    assert (pool.num_free, pool.num_used) == (0, 7)


def test_a_pool_with_too_few_blocks_lends_none() -> None:
    pool = BlockPool(num_blocks=3, block_tokens=16)
    assert pool.allocate(4) is None
    assert pool.num_free == 3
    assert pool.allocate(0) == ()


def test_a_block_comes_back_only_once() -> None:
    pool = BlockPool(num_blocks=3, block_tokens=16)
    blocks = pool.allocate(2)
    assert blocks is not None
    pool.free(blocks)
    with pytest.raises(ValueError, match="not lent"):
        pool.free(blocks[:1])
    with pytest.raises(ValueError, match="not lent"):
        pool.free([3])
    with pytest.raises(ValueError, match="not lent"):
        pool.free([-1])


@pytest.mark.parametrize(("num_tokens", "num_blocks"), [(0, 0), (1, 1), (15, 1), (16, 1), (17, 2), (31, 2), (33, 3)])
def test_blocks_for_rounds_up(num_tokens: int, num_blocks: int) -> None:
    assert BlockPool(num_blocks=1, block_tokens=16).blocks_for(num_tokens) == num_blocks


def test_equal_histories_give_equal_blocks() -> None:
    def history() -> list[tuple[int, ...]]:
        pool, rng = BlockPool(num_blocks=20, block_tokens=4), random.Random(5)
        owned: list[tuple[int, ...]] = []
        lent: list[tuple[int, ...]] = []
        for _ in range(200):
            if owned and rng.random() < 0.5:
                pool.free(owned.pop(rng.randrange(len(owned))))
            elif blocks := pool.allocate(rng.randint(1, 5)):
                owned.append(blocks)
                lent.append(blocks)
            pool.check(owned)
        return lent

    assert history() == history()


def test_check_notices_a_lost_a_shared_and_a_foreign_block() -> None:
    pool = BlockPool(num_blocks=4, block_tokens=16)
    blocks = pool.allocate(2)
    assert blocks is not None
    pool.check([blocks])
    pool.check([blocks[:1], blocks[1:]])
    for tables in ([blocks[:1]], [blocks, blocks[:1]], [(*blocks, 99)], [(*blocks, 3)]):
        with pytest.raises(AssertionError):
            pool.check(tables)


@pytest.mark.parametrize("sizes", [(0, 16), (4, 0)])
def test_a_pool_of_nothing_is_refused(sizes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="a pool needs"):
        BlockPool(*sizes)

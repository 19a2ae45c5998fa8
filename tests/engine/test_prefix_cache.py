"""A block is found by those whose whole text up to its end is the same, and by nobody else."""

from __future__ import annotations

import hashlib

import pytest

from tinycluster.engine import prefix_cache
from tinycluster.engine.block_pool import BlockPool
from tinycluster.engine.prefix_cache import Prefix, PrefixCache, root


def text(*blocks: tuple[int, ...], salt: str = "", digest: str = "model") -> Prefix:
    prefix = root(digest, salt)
    for tokens in blocks:
        prefix = prefix.then(tokens)
    return prefix


def test_a_key_is_sha256_over_the_key_before_it_and_the_tokens() -> None:
    first = text((1, 2))
    assert first.parent is not None
    assert first.key == hashlib.sha256(first.parent.key + bytes([1, 0, 0, 0, 2, 0, 0, 0])).digest()


@pytest.mark.parametrize(
    "other",
    [
        text((1, 2), (3, 5)),
        text((9, 2), (3, 4)),
        text((3, 4)),
        text((1, 2), (3, 4), salt="theirs"),
        text((1, 2), (3, 4), digest="another"),
    ],
)
def test_only_the_same_text_of_the_same_model_and_salt_is_found(other: Prefix) -> None:
    cache = PrefixCache()
    mine = text((1, 2), (3, 4))
    cache.add(mine, block=7)
    assert cache.find(other) is None
    assert cache.find(text((1, 2), (3, 4))) == (7, mine)


def test_a_digest_and_a_salt_cannot_be_cut_elsewhere() -> None:
    assert text(digest="ab", salt="c").key != text(digest="a", salt="bc").key


def test_equal_keys_of_different_texts_do_not_mix_them_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_cache, "_key", lambda before, content: b"collision")
    cache = PrefixCache()
    cache.add(text((1, 2), (3, 4)), block=7)
    assert cache.find(text((5, 6))) is None
    # The same tokens in the block itself, after others.
    assert cache.find(text((5, 6), (3, 4))) is None
    assert cache.find(text((3, 4))) is None
    assert cache.find(text((1, 2), (3, 4))) is not None
    other = text((5, 6))
    assert cache.add(other, block=8) is other
    assert not cache.knows(8), "a key that is taken stays with the first"


def test_who_adds_a_known_text_gets_the_prefix_that_is_remembered() -> None:
    cache = PrefixCache()
    first = text((1, 2))
    assert cache.add(first, block=0) is first
    assert cache.add(text((1, 2)), block=1) is first
    assert not cache.knows(1)


def test_a_forgotten_block_can_be_remembered_anew_and_its_successor_is_still_found() -> None:
    cache = PrefixCache()
    parent = text((1, 2))
    child = parent.then((3, 4))
    cache.add(parent, block=0)
    cache.add(child, block=1)
    cache.forget(0)
    assert cache.find(text((1, 2))) is None
    cache.add(text((1, 2)), block=5)
    found = cache.find(text((1, 2)))
    assert found is not None
    assert cache.find(found[1].then((3, 4))) == (1, child)
    cache.check()


def test_a_damaged_table_is_noticed() -> None:
    cache = PrefixCache()
    cache.add(text((1, 2)), block=0)
    cache.check()
    cache._prefix_of[0] = Prefix(text((1, 2)).key, (1, 3), text())
    with pytest.raises(AssertionError, match="fit its tokens"):
        cache.check()


def test_the_least_recently_used_block_is_evicted_first_and_blank_ones_before_it() -> None:
    pool = BlockPool(num_blocks=4, block_tokens=2)
    prefixes = [text((number, number)) for number in range(3)]
    for prefix in prefixes:
        (block,) = pool.allocate(1) or ()
        pool.remember(prefix, block)
        pool.free([block])
    assert (pool.num_free, pool.num_cached) == (4, 3)
    used = pool.find(prefixes[0])
    assert used is not None
    pool.share([used[0]])
    pool.free([used[0]])
    (blank,) = pool.allocate(1) or ()
    assert [pool.find(prefix) is not None for prefix in prefixes] == [True, True, True]
    (evicted,) = pool.allocate(1) or ()
    assert [pool.find(prefix) is not None for prefix in prefixes] == [True, False, True]
    pool.check([[blank], [evicted]])


def test_a_shared_block_is_free_when_its_last_owner_leaves() -> None:
    pool = BlockPool(num_blocks=2, block_tokens=2)
    (block,) = pool.allocate(1) or ()
    pool.remember(text((1, 2)), block)
    assert pool.num_unused([block]) == 0
    pool.share([block])
    pool.free([block])
    assert pool.num_used == 1
    pool.check([[block]])
    pool.free([block])
    assert (pool.num_used, pool.num_unused([block])) == (0, 1)
    with pytest.raises(ValueError, match="not lent"):
        pool.free([block])


def test_the_end_of_a_text_is_evicted_before_its_beginning() -> None:
    pool = BlockPool(num_blocks=2, block_tokens=2)
    blocks = pool.allocate(2) or ()
    first, second = text((1, 2)), text((1, 2), (3, 4))
    pool.remember(first, blocks[0])
    pool.remember(second, blocks[1])
    pool.free(blocks)
    assert pool.allocate(1) == (blocks[1],)
    assert pool.find(first) is not None


def leave(pool: BlockPool, number: int, *, of_conversation: bool) -> Prefix:
    """A block whose content is its number, which its only owner has left."""
    (block,) = pool.allocate(1) or ()
    pool.remember(text((number, number)), block)
    pool.free([block], of_conversation=of_conversation)
    return text((number, number))


def test_what_a_conversation_left_outlasts_what_came_later_without_one() -> None:
    pool = BlockPool(num_blocks=6, block_tokens=2)
    kept = [leave(pool, number, of_conversation=True) for number in range(2)]
    others = [leave(pool, number, of_conversation=False) for number in range(2, 6)]
    taken = [pool.allocate(1) or () for _ in range(5)]
    assert [pool.find(prefix) is not None for prefix in (*kept, *others)] == [False, True] + [False] * 4
    pool.check(taken)


def test_conversations_take_no_more_than_their_share_from_others() -> None:
    pool = BlockPool(num_blocks=8, block_tokens=2)
    other = leave(pool, 0, of_conversation=False)
    kept = [leave(pool, number, of_conversation=True) for number in range(1, 8)]
    assert len(pool.allocate(3) or ()) == 3
    assert [pool.find(prefix) is not None for prefix in (other, *kept)] == [True] + [False] * 3 + [True] * 4
    assert len(pool.allocate(1) or ()) == 1
    assert pool.find(other) is None


def test_the_conversation_that_was_idle_for_longest_is_forgotten_first() -> None:
    pool = BlockPool(num_blocks=2, block_tokens=2)
    first, second = (leave(pool, number, of_conversation=True) for number in range(2))
    found = pool.find(first)
    assert found is not None
    pool.share([found[0]])
    pool.free([found[0]])
    assert len(pool.allocate(1) or ()) == 1
    assert [pool.find(first) is not None, pool.find(second) is not None] == [True, False]


def test_a_block_that_two_share_is_a_conversations_if_one_of_them_is() -> None:
    for first_leaves_as_conversation in (False, True):
        pool = BlockPool(num_blocks=3, block_tokens=2)
        (block,) = pool.allocate(1) or ()
        shared = text((9, 9))
        pool.remember(shared, block)
        pool.share([block])
        pool.free([block], of_conversation=first_leaves_as_conversation)
        pool.free([block], of_conversation=not first_leaves_as_conversation)
        other = leave(pool, 1, of_conversation=False)
        assert len(pool.allocate(2) or ()) == 2
        assert [pool.find(shared) is not None, pool.find(other) is not None] == [True, False]

"""Drafts are what followed the last tokens before; they stop where they do not pay."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tinycluster.engine.speculation import LONGEST_PAUSE, MAX_DRAFTS, NGRAM, SHORTEST_PAUSE, DraftCounts, Speculation


def looked(tokens: list[int]) -> Speculation:
    speculation = Speculation(DraftCounts())
    speculation.look(tokens)
    return speculation


def brute_force(tokens: list[int]) -> tuple[int, ...]:
    """What followed the last earlier occurrence of the last tokens, read on as if the text went on like that."""
    for begin in range(len(tokens) - NGRAM - 1, -1, -1):
        if len(tokens) >= NGRAM and tokens[begin : begin + NGRAM] == tokens[-NGRAM:]:
            longer = list(tokens)
            for offset in range(MAX_DRAFTS):
                longer.append(longer[begin + NGRAM + offset])
            return tuple(longer[len(tokens) :])
    return ()


@given(st.lists(st.integers(0, 2), max_size=40), st.integers(0, 40))
def test_drafts_are_what_a_search_through_the_whole_text_finds(tokens: list[int], seen: int) -> None:
    speculation = looked(tokens[:seen])
    speculation.look(tokens)
    assert speculation.drafts(MAX_DRAFTS) == brute_force(tokens)
    assert speculation.wants_tokens == bool(brute_force(tokens))


def test_no_more_drafts_are_given_than_asked_for() -> None:
    speculation = looked([1, 2, 3, 4, 5, 1, 2, 3])
    assert speculation.drafts(2) == (4, 5)
    assert speculation.drafts(0) == speculation.drafts(-1) == ()


def test_wrong_drafts_are_followed_by_a_pause_that_doubles() -> None:
    text = [1, 2, 3, 4] * 300
    speculation = Speculation(DraftCounts())
    pauses, num_tokens = [], 20
    while len(pauses) < 7:
        speculation.look(text[:num_tokens])
        assert speculation.wants_tokens
        speculation.judge(4, 0, num_tokens)
        begin = num_tokens
        while not speculation.wants_tokens:
            num_tokens += 1
            speculation.look(text[:num_tokens])
        pauses.append(num_tokens - begin)
    doubled = [SHORTEST_PAUSE * 2**index for index in range(7)]
    assert pauses == [min(pause, LONGEST_PAUSE) for pause in doubled]


def test_a_right_draft_makes_the_next_pause_short_again() -> None:
    text = [1, 2, 3, 4] * 300
    speculation = looked(text[:20])
    for num_tokens in (20, 100, 300):
        speculation.judge(4, 0, num_tokens)
    speculation.judge(4, 4, 400)
    speculation.judge(4, 0, 400)
    speculation.look(text[: 400 + SHORTEST_PAUSE])
    assert speculation.wants_tokens


def test_what_was_drafted_and_accepted_is_counted() -> None:
    counts = DraftCounts()
    speculation = Speculation(counts)
    speculation.judge(5, 3, 10)
    speculation.judge(2, 2, 20)
    assert counts == DraftCounts(num_drafts=2, num_draft_tokens=7, num_accepted_tokens=5)
    assert 0.5 < speculation.acceptance < 1

"""What may be shown of a text that grows, while patterns may still match it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tinycluster.engine.errors import ConfigError
from tinycluster.serve import content_patterns
from tinycluster.serve.content_patterns import Patterns

PATTERNS = ["bab", "a+b", "^ab", "(?<=b)aa", "ab.*c", r"\bba\b", "[ab]c$", "(a|bb){2,3}c", "abc(?!a)"]
CATASTROPHIC = r"(?:a|a)*b(a|aa)+$"
CATASTROPHE = "a" * 4000 + "b" + "a" * 3000 + "c"


@pytest.fixture(scope="module", autouse=True)
def patience() -> Iterator[None]:
    """A search that a busy machine interrupts for a second has not failed."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(content_patterns, "IN_THREAD_S", 60.0)
        yield


def shown(patterns: list[str], pieces: list[str]) -> tuple[str, bool]:
    """What a reader has seen at the end, and whether the text was refused."""

    async def read() -> tuple[str, bool]:
        compiled, text, starts, num_shown = Patterns(patterns), "", [0] * len(patterns), 0
        for number, piece in enumerate(pieces):
            text += piece
            scan = await compiled.scan(text, starts, is_whole=number == len(pieces) - 1)
            if scan.is_refused:
                return text[:num_shown], True
            starts, num_shown = list(scan.starts), max(num_shown, scan.num_approved)
        return text[:num_shown], False

    return asyncio.run(read())


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=60)
@example(pieces=["ac", "\n", "a"])
@given(pieces=st.lists(st.text("abc \n", max_size=4), min_size=1, max_size=8))
def test_a_text_in_pieces_is_refused_as_it_is_as_a_whole(pattern: str, pieces: list[str]) -> None:
    """By Python's own engine; and nothing of what it finds is shown. A match that only a later character would undo
    (?!a) may be refused before that comes."""
    text = "".join(pieces)
    found = re.search(pattern, text, re.IGNORECASE)
    seen, is_refused = shown([pattern], pieces)
    if found is not None:
        assert is_refused
        assert len(seen) <= found.start()
    elif "(?!" not in pattern:
        assert (seen, is_refused) == (text, False)


def test_only_what_may_still_match_is_held_back() -> None:
    async def approved(text: str) -> int:
        patterns = Patterns(["bomb", "kill.*me"])
        return (await patterns.scan(text, [0, 0], is_whole=False)).num_approved

    assert asyncio.run(approved("make a bo")) == len("make a ")
    assert asyncio.run(approved("make a box")) == len("make a box")
    assert asyncio.run(approved("kill it, and")) == 0
    assert asyncio.run(approved("kill it, and\nthen b")) == len("kill it, and\nthen ")


def test_letters_match_in_any_case() -> None:
    assert shown(["Straße"], ["STRASSE ", "straße"])[1]


def test_a_backslash_before_a_k_may_be_meant() -> None:
    r"""Two are a backslash that is searched for; \K is refused because what stands before it would be shown."""
    assert shown([r"\\Kat"], ["a ", "\\k", "at"]) == ("a ", True)


def test_a_catastrophic_pattern_ends_at_its_deadline_and_lets_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a thread that does not keep the others from running."""
    monkeypatch.setattr(content_patterns, "IN_THREAD_S", 4.0)

    async def scan() -> tuple[bool, int]:
        patterns, num_turns, is_over = Patterns([CATASTROPHIC]), 0, False

        async def turn() -> None:
            nonlocal num_turns
            while not is_over:
                await asyncio.sleep(0.01)
                num_turns += 1

        turning = asyncio.create_task(turn())
        try:
            await patterns.scan(CATASTROPHE, [0], is_whole=True)
        except TimeoutError:
            has_timed_out = True
        else:
            has_timed_out = False
        is_over = True
        await turning
        patterns.close()
        return has_timed_out, num_turns

    has_timed_out, num_turns = asyncio.run(scan())
    assert has_timed_out
    # There is time for four hundred turns; where the search kept everything else waiting there would be one or two.
    assert num_turns > 10


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("[a-", "is not a pattern"),
        ("(", "is not a pattern"),
        ("a*", "is found in every text"),
        ("^", "is found in every text"),
        ("a|", "is found in every text"),
        (r"secret\Kword", r"\\K is not supported"),
        (r"\\\Kword", r"\\K is not supported"),
    ],
)
def test_a_pattern_that_cannot_be_meant_is_refused_at_the_start(pattern: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as refused:
        Patterns([pattern])
    assert repr(pattern) in str(refused.value)

"""Patterns that no prompt and no answer may contain, searched while the answer grows.

    approved               held back
    ──────────────────────┬──────────────
    She said that the bo  │ mb           a pattern "bomb.*kit" may still match from here on

Of a text that goes on, everything before the first place where a match could still begin is certain: the package
`regex` finds that place by itself (a partial match), and the next search begins there.
A pattern may take exponential time. Every search therefore has a deadline: a short one on the event loop, then a longer
one in a thread, where `regex`, unlike Python's own `re`, lets the rest of the process run.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import regex

from tinycluster.engine.errors import ConfigError

MAX_CHARS_ON_LOOP = 16 * 2**10
ON_LOOP_S, IN_THREAD_S = 0.002, 1.0
KEEP = regex.compile(r"(?<!\\)(?:\\\\)*\\K")
"""A match begins after it: what stands before would be shown, and searched no more."""


@dataclass(frozen=True)
class Scan:
    """What a search has found. `starts` is by pattern where the next one begins; before `num_approved` characters
    nothing can match any more."""

    is_refused: bool
    starts: Sequence[int]
    num_approved: int


class Patterns:
    """ConfigError for a pattern that is none, that is found in every text, or that hides where its match begins."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._compiled = [_compiled(pattern) for pattern in patterns]
        self._threads = ThreadPoolExecutor(2, "content-filter")

    def __len__(self) -> int:
        return len(self._compiled)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def scan(self, text: str, starts: Sequence[int], *, is_whole: bool) -> Scan:
        """`starts` are those of the last scan of the text's beginning, or zeros. TimeoutError after IN_THREAD_S."""
        if len(text) - min(starts, default=0) <= MAX_CHARS_ON_LOOP:
            try:
                return self._scan(text, starts, is_whole, ON_LOOP_S, False)
            except TimeoutError:
                pass
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(2 * IN_THREAD_S):
            return await loop.run_in_executor(self._threads, self._scan, text, starts, is_whole, IN_THREAD_S, True)

    def _scan(self, text: str, starts: Sequence[int], is_whole: bool, limit_s: float, is_in_thread: bool) -> Scan:
        deadline_s, next_starts = time.monotonic() + limit_s, list[int]()

        def search(pattern: regex.Pattern[str], start: int, *, partial: bool) -> regex.Match[str] | None:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            return pattern.search(text, start, partial=partial, timeout=left_s, concurrent=is_in_thread)

        for pattern, start in zip(self._compiled, starts, strict=True):
            found = search(pattern, start, partial=False)
            # What ends with the text may be no match once the text goes on: "$", which is also before a last line end.
            if found is not None and (is_whole or found.end() < len(text) - text.endswith("\n")):
                return Scan(True, starts, 0)
            if not is_whole:
                possible = search(pattern, start, partial=True)
                next_starts.append(len(text) if possible is None else possible.start())
        return Scan(False, next_starts, len(text) if is_whole else min(next_starts, default=len(text)))


def _compiled(pattern: str) -> regex.Pattern[str]:
    try:
        compiled = regex.compile(pattern, regex.IGNORECASE)
        is_everywhere = compiled.search("", timeout=IN_THREAD_S) is not None
    except (regex.error, OverflowError, RecursionError, TimeoutError) as error:
        raise ConfigError(f"server.content_filter.patterns: {pattern!r} is not a pattern: {error}") from None
    if KEEP.search(pattern):
        raise ConfigError(f"server.content_filter.patterns: {pattern!r}: \\K is not supported; (?<=…) says the same")
    if is_everywhere:
        raise ConfigError(f"server.content_filter.patterns: {pattern!r} is found in every text, also in an empty one")
    return compiled

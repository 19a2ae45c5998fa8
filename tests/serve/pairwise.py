"""Combinations of fields in which every two values of different fields meet."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any

Row = dict[str, Any]
Pair = tuple[str, int, str, int]


def pairs_of(choice: Mapping[str, int]) -> set[Pair]:
    """Every two fields of a row with the numbers of their values."""
    return {(a, choice[a], b, choice[b]) for a, b in itertools.combinations(sorted(choice), 2)}


def covering_rows(table: Mapping[str, Sequence[Any]], *, at_least: int, seed: int) -> list[Row]:
    """Rows with a value for every field, until every pair of values stands in one and there are `at_least` rows.

    Greedy: of a few random rows the one that covers most of what is missing, starting from a missing pair.
    """
    generator = random.Random(seed)
    missing = {
        (a, i, b, j)
        for a, b in itertools.combinations(sorted(table), 2)
        for i in range(len(table[a]))
        for j in range(len(table[b]))
    }
    chosen: list[dict[str, int]] = []
    while missing or len(chosen) < at_least:
        start = min(missing, default=None)
        candidates = [_random_row(table, start, generator) for _ in range(12)]
        best = max(candidates, key=lambda row: len(pairs_of(row) & missing))
        missing -= pairs_of(best)
        chosen.append(best)
    return [{field: table[field][index] for field, index in row.items()} for row in chosen]


def _random_row(table: Mapping[str, Sequence[Any]], start: Pair | None, generator: random.Random) -> dict[str, int]:
    row = {field: generator.randrange(len(values)) for field, values in table.items()}
    if start is not None:
        a, i, b, j = start
        row |= {a: i, b: j}
    return row

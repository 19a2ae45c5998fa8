from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinycluster.parallel.units import Shares, Split, WeightSpec, deal

WEIGHTS = st.lists(st.floats(0.01, 100, allow_nan=False) | st.integers(1, 9), min_size=1, max_size=6)


@given(st.integers(0, 300), WEIGHTS)
def test_a_deal_covers_every_unit_once_in_order(num_units: int, weights: Any) -> None:
    shares = deal(num_units, weights)
    assert len(shares) == len(weights)
    assert [unit for share in shares for unit in share] == list(range(num_units))


@given(st.integers(0, 300), WEIGHTS)
def test_no_share_is_a_whole_unit_away_from_its_exact_part(num_units: int, weights: Any) -> None:
    total = sum(map(Fraction, weights))
    for share, weight in zip(deal(num_units, weights), weights, strict=True):
        assert abs(len(share) - Fraction(weight) * num_units / total) < 1


@given(st.integers(0, 9), st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_no_other_deal_is_nearer_to_the_exact_parts(num_units: int, weights: list[int]) -> None:
    """Largest remainder minimises the sum of squared distances (checked against all deals)."""
    exact = [Fraction(weight * num_units, sum(weights)) for weight in weights]

    def distance(counts: Any) -> Fraction:
        return sum(((count - part) ** 2 for count, part in zip(counts, exact, strict=True)), Fraction(0))

    cuts = itertools.combinations_with_replacement(range(num_units + 1), len(weights) - 1)
    nearest = min(distance(b - a for a, b in itertools.pairwise([0, *inner, num_units])) for inner in cuts)
    assert distance([len(share) for share in deal(num_units, weights)]) == nearest


@given(st.integers(0, 100), st.integers(1, 8))
def test_equal_ranks_differ_by_at_most_one_unit_and_the_lower_ranks_have_more(num_units: int, size: int) -> None:
    counts = [len(share) for share in deal(num_units, [1] * size)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] - counts[-1] <= 1


@given(st.integers(0, 100), WEIGHTS, st.integers(1, 1000))
def test_only_the_ratio_of_the_weights_counts(num_units: int, weights: Any, factor: int) -> None:
    assert deal(num_units, weights) == deal(num_units, [Fraction(weight) * factor for weight in weights])


@pytest.mark.parametrize("weights", [[], [0], [1, -1], [1, 0, 1]])
def test_weights_that_are_not_positive_are_refused(weights: Any) -> None:
    with pytest.raises(ValueError, match="rank weights must be positive"):
        deal(9, weights)


@given(st.integers(0, 500), st.integers(1, 70), WEIGHTS)
def test_the_columns_of_all_ranks_are_the_whole_dimension(size: int, unit: int, weights: Any) -> None:
    split = Split("mlp", size, unit)
    ranks = [Shares(rank, tuple(weights), 1, 1) for rank in range(len(weights))]
    columns = [split.columns(shares.units(split)) for shares in ranks]
    assert [column for part in columns for column in part] == list(range(size))
    assert all(part.start % unit == 0 or not part for part in columns)
    assert [ranks[0].width(split, rank) for rank in range(len(weights))] == list(map(len, columns))


HEADS = st.integers(1, 8).flatmap(lambda kv: st.integers(1, 6).map(lambda group: (kv * group, kv)))


@given(HEADS, WEIGHTS)
def test_every_query_head_finds_its_kv_head_in_its_own_rank(heads: tuple[int, int], weights: Any) -> None:
    num_heads, num_kv_heads = heads
    for rank in range(len(weights)):
        shares = Shares(rank, tuple(weights), num_heads, num_kv_heads)
        found = [shares.kv_heads[index] for index in shares.kv_head_of_head]
        assert found == [head * num_kv_heads // num_heads for head in shares.heads]
        assert set(found) == set(shares.kv_heads)


def test_the_examples_of_the_design_hold() -> None:
    assert [len(share) for share in deal(9, [1, 1])] == [5, 4]
    assert [len(share) for share in deal(9, [1] * 4)] == [3, 2, 2, 2]
    assert deal(2, [1, 1, 1]) == (range(1), range(1, 2), range(2, 2))
    assert [list(Shares(rank, (1.0, 1.0), 9, 3).kv_heads) for rank in range(2)] == [[0, 1], [1, 2]]


def test_a_weight_is_sliced_along_its_split_dimension_only() -> None:
    split = Split("mlp", 150, 64)
    shares = Shares(1, (1.0, 1.0), 9, 3)
    assert WeightSpec("up", (150, 40), 0, split).slices(shares) == (range(128, 150), range(40))
    assert WeightSpec("down", (40, 150), 1, split).slices(shares) == (range(40), range(128, 150))
    assert WeightSpec("norm", (40,)).slices(shares) == (range(40),)

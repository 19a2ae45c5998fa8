"""How weights are cut: units, the dealing of units to ranks, and the table of weights.

A unit is the smallest piece that is never split: one query head, a 64-wide slice of the MLP, a block of vocabulary
rows. Units are dealt to tensor ranks as contiguous ranges in proportion to the ranks' weights, so 9 heads over 2 ranks
are 5 + 4 and no divisibility rule exists. The sum over units does not depend on the dealing (see kernels/reference.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

Axis = Literal["head", "kv_head", "mlp", "vocab"]
MLP_UNIT = 64
VOCAB_UNIT = 64


def deal(num_units: int, weights: Sequence[float]) -> tuple[range, ...]:
    """Contiguous shares of `num_units`, proportional to `weights`, by largest remainder (ties to the lower rank).

    deal(9, [1, 1]) -> (range(0, 5), range(5, 9)); deal(2, [1, 1, 1]) -> two shares of one unit and one empty share.
    """
    if not weights or any(weight <= 0 for weight in weights):
        raise ValueError(f"rank weights must be positive, got {list(weights)}")
    exact = [Fraction(weight) * num_units / sum(map(Fraction, weights)) for weight in weights]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda rank: (counts[rank] - exact[rank], rank))
    for rank in by_remainder[: num_units - sum(counts)]:
        counts[rank] += 1
    starts = [sum(counts[:rank]) for rank in range(len(counts))]
    return tuple(range(start, start + count) for start, count in zip(starts, counts, strict=True))


@dataclass(frozen=True)
class Split:
    """A dimension of `size` cut into units of `unit`; the last unit may be short."""

    axis: Axis
    size: int
    unit: int

    @property
    def num_units(self) -> int:
        return -(-self.size // self.unit)

    def columns(self, units: range) -> range:
        """The elements that a contiguous range of units covers."""
        return range(min(units.start * self.unit, self.size), min(units.stop * self.unit, self.size))


@dataclass(frozen=True)
class WeightSpec:
    """One weight of a model: its Hugging Face name, full shape, and the dimension (0 or 1) that is split, if any.

    split_dim 0 is column-parallel (output rows), 1 is row-parallel (columns, one chain per unit), None is replicated.
    """

    name: str
    shape: tuple[int, ...]
    split_dim: int | None = None
    split: Split | None = None

    def slices(self, shares: Shares) -> tuple[range, ...]:
        """The index range along each dimension that the rank of these shares holds."""
        whole = [range(size) for size in self.shape]
        if self.split is not None and self.split_dim is not None:
            whole[self.split_dim] = self.split.columns(shares.units(self.split))
        return tuple(whole)


@dataclass(frozen=True)
class Shares:
    """What one tensor rank holds of every axis: `rank` of `len(weights)` ranks."""

    rank: int
    weights: tuple[float, ...]
    num_heads: int
    num_kv_heads: int

    @property
    def size(self) -> int:
        return len(self.weights)

    def units(self, split: Split) -> range:
        if split.axis == "kv_head":
            return self.kv_heads
        return deal(split.num_units, self.weights)[self.rank]

    def width(self, split: Split, rank: int | None = None) -> int:
        """How many elements of the split dimension a rank holds (this one by default)."""
        other = self if rank is None else Shares(rank, self.weights, self.num_heads, self.num_kv_heads)
        return len(split.columns(other.units(split)))

    @property
    def heads(self) -> range:
        return deal(self.num_heads, self.weights)[self.rank]

    @property
    def kv_heads(self) -> range:
        """Every KV head that one of this rank's query heads reads; neighbours may both keep one."""
        heads = self.heads
        if not heads:
            return range(0)
        group = self.num_heads // self.num_kv_heads
        return range(heads.start // group, heads[-1] // group + 1)

    @property
    def kv_head_of_head(self) -> tuple[int, ...]:
        """For each of this rank's query heads, the index among this rank's KV heads."""
        group = self.num_heads // self.num_kv_heads
        return tuple(head // group - self.kv_heads.start for head in self.heads)

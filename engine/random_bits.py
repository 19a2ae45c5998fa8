"""Randomness without state: 64 bits from (seed, position), the same on every machine, in any order of asking."""

from __future__ import annotations

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def mix64(x: int) -> int:
    """The output function of SplitMix64: a bijection of 64-bit numbers (Steele, Lea & Flood 2014, figure 17)."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def random_bits(seed: int, position: int) -> int:
    """Output number `position` of the SplitMix64 generator that starts at mix64(seed), as 0 .. 2^64 - 1.

    The seed is mixed first: generators that start at neighbouring numbers would repeat each other's outputs.
    """
    return mix64((mix64(seed & _MASK) + (position + 1) * _GOLDEN) & _MASK)


def random_below(bound: int, seed: int, position: int) -> int:
    """A whole number in 0 .. bound - 1: floor(u * bound) for the uniform u = random_bits / 2^64 in [0, 1).

    The high word of a 64 by 64 bit product, exact in integers (Lemire 2019, section 3). `bound` is at most 2^64.
    """
    return (random_bits(seed, position) * bound) >> 64

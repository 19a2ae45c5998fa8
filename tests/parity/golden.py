"""Reads goldens.npz, which generate_goldens.py writes, and says what it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tinycluster.kernels.program import F32, I32

PATH = Path(__file__).with_name("goldens.npz")
SEED = 0
PROMPT, SEQUENCE = 40, 64
POSITIONS = (0, 7, 16, 39, 40, 55, 63)
SMALLEST_GAP = 0.02
"""Between the two best logits of every greedy choice: well above float32 noise, so that ties decide nothing."""


@dataclass(frozen=True)
class Golden:
    """tokens (SEQUENCE,): PROMPT random ones, then the greedy continuation; logits (len(POSITIONS), vocab_size)."""

    tokens: I32
    logits: F32

    @property
    def prompt(self) -> list[int]:
        return [int(token) for token in self.tokens[:PROMPT]]

    @property
    def continuation(self) -> list[int]:
        return [int(token) for token in self.tokens[PROMPT:]]


def read(names: Sequence[str]) -> tuple[NDArray[np.float32], ...]:
    """Arrays of the file by name; only these are decompressed."""
    with np.load(PATH, allow_pickle=False) as file:
        return tuple(file[name] for name in names)


def read_golden(case: str) -> Golden:
    tokens, logits = read((f"{case}/tokens", f"{case}/logits"))
    return Golden(tokens.astype(np.int32), logits)

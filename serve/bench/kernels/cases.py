"""The ops of a configured model with its shapes, ready to be checked and timed.

Shape legend: T = tokens, N = output rows, K = columns, H = query heads, C = head_dim, P = positions of context.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tinycluster.engine.models.spec import ModelConfig
from tinycluster.kernels.formats import Format
from tinycluster.kernels.program import I32, Batch, CodeBits, Program
from tinycluster.parallel.units import Shares, WeightSpec
from tinycluster.serve.bench.client import Clock
from tinycluster.serve.bench.kernels.trial import Engine, Stopwatch, Trial, only, same_bits

CHECKED_TOKENS = 4


@dataclass(frozen=True)
class Case:
    """One op at one size. `is_correct` compares with the numpy definition; `stopwatch` gives seconds per op."""

    op: str
    shape: str
    tokens: int
    num_bytes: int
    """What one op must read and write."""
    macs: int
    is_correct: Callable[[], bool]
    stopwatch: Callable[[Clock], Callable[[], float]]
    format: Format | None = None
    code_bits: CodeBits | None = None
    """Of a product's activations, where the weight is q8 or q4."""
    num_threads: int | None = None
    """None: all that were asked for."""
    from_memory: bool = False
    """Whether repetitions go over more bytes than the last-level cache holds."""


@dataclass(frozen=True)
class Model:
    """What the cases read of a model: one rank's Program, its table of weights, its part of the mesh."""

    config: ModelConfig
    program: Program
    specs: Sequence[WeightSpec]
    shares: Shares

    def shape_of(self, weight: str) -> tuple[int, int]:
        spec = next(spec for spec in self.specs if spec.name == weight)
        N, K = map(len, spec.slices(self.shares))
        return N, K


def sample(rng: np.random.Generator, count: int, every: int, most: int) -> I32:
    """One of every `every` indices and the last, at most `most`, ascending."""
    starts = np.arange(0, count, max(every, -(-count // most)))
    drawn = np.minimum(starts + rng.integers(0, every, len(starts)), count - 1)
    drawn[-1] = count - 1
    return np.unique(drawn).astype(np.int32)


def compare(
    trial: Trial, part: Trial, engine: Engine, batch: Batch, *, columns: I32 | slice = slice(None)
) -> Callable[[], bool]:
    """The native op on the whole batch against the definition of `part` on the sampled rows alone."""

    def is_correct() -> bool:
        got = trial.native(engine, 1).run(batch)
        wanted = part.definition().run(only(batch, batch.output_rows))
        assert got is not None
        return same_bits(np.ascontiguousarray(got[:, columns]), wanted)

    return is_correct


def stopwatch_of(trial: Trial, engine: Engine, batch: Batch) -> Callable[[Clock], Callable[[], float]]:
    return lambda clock: Stopwatch(trial, engine, batch, clock).seconds_per_op

"""Norm, activation, rope and residual at every distinct width of the Program."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tinycluster.kernels import program as p
from tinycluster.kernels.formats import DenseTensor
from tinycluster.kernels.packing import pack
from tinycluster.kernels.program import F32, Buffer
from tinycluster.serve.bench.kernels.cases import Case, Model, compare, stopwatch_of
from tinycluster.serve.bench.kernels.trial import Engine, Trial, batch_of


@dataclass(frozen=True, order=True)
class RowShape:
    """`width` columns, of which `dim` belong together."""

    op: str
    width: int
    dim: int

    def __str__(self) -> str:
        return str(self.width) if self.dim == self.width else f"{self.width // self.dim}×{self.dim}"


def row_shapes(program: p.Program) -> list[RowShape]:
    """Every distinct one of the Program."""
    found = set()
    for op in program.ops:
        if isinstance(op, p.RmsNorm):
            found.add(RowShape("rms_norm", program.buffers[op.x].width, op.dim))
        elif isinstance(op, p.Rope):
            found.add(RowShape("rope", program.buffers[op.x].width, op.head_dim))
        elif isinstance(op, p.SwiGlu | p.AddFixed):
            width = program.buffers[op.out if isinstance(op, p.SwiGlu) else op.x].width
            found.add(RowShape("swiglu" if isinstance(op, p.SwiGlu) else "add_fixed", width, width))
    return sorted(found)


def row_cases(model: Model, engine: Engine, tokens: Sequence[int], rope: tuple[F32, F32]) -> Iterator[Case]:
    for shape in row_shapes(model.program):
        for T in tokens:
            trial, num_bytes = _trial(shape, np.random.default_rng(T), T, rope)
            batch = batch_of(T, np.arange(T, dtype=np.int32))
            yield Case(
                op=shape.op,
                shape=str(shape),
                tokens=T,
                num_bytes=num_bytes,
                macs=0,
                is_correct=compare(trial, trial, engine, batch),
                stopwatch=stopwatch_of(trial, engine, batch),
            )


def _trial(shape: RowShape, rng: np.random.Generator, T: int, rope: tuple[F32, F32]) -> tuple[Trial, int]:
    """The trial, and the bytes that the op reads and writes."""
    width, dim = shape.width, shape.dim
    x = rng.standard_normal((T, width), np.float32)
    if shape.op == "rms_norm":
        weights = {"weight": rng.standard_normal(dim, np.float32)}
        op = p.RmsNorm("x", "weight", 1e-5, dim, "out")
        return Trial({"x": x}, (op,), "out", {"out": Buffer(width)}, weights, weights), 8 * x.size
    if shape.op == "swiglu":
        inputs = {"gate": x, "up": rng.standard_normal((T, width), np.float32)}
        return Trial(inputs, (p.SwiGlu("gate", "up", "out"),), "out", {"out": Buffer(width)}), 12 * x.size
    if shape.op == "rope":
        return Trial({"x": x}, (p.Rope("x", dim),), "x", {"x": Buffer(width)}, rope=rope), 8 * x.size
    # A product with a matrix of one column makes the fixed-point numbers.
    column = DenseTensor("f32", rng.standard_normal((width, 1), np.float32))
    return Trial(
        {"x": x, "factor": rng.standard_normal((T, 1), np.float32)},
        (p.AddFixed("x", "fixed"),),
        "x",
        {"x": Buffer(width), "fixed": Buffer(width, dtype="int64")},
        {"column": pack(column, unit=1)},
        {"column": column},
        before=(p.LinearFixed("factor", "column", "fixed", 1, 2.0**20),),
    ), 16 * x.size

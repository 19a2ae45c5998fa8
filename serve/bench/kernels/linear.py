"""Matrix products: every distinct shape of the Program, in every format.

Shape legend: T = tokens, N = output rows, K = columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tinycluster.kernels import program as p
from tinycluster.kernels.formats import GROUP, DenseTensor, Format, GroupedTensor, HostTensor
from tinycluster.kernels.packing import Arena, PackedWeight, pack, prepare
from tinycluster.kernels.program import F32, I32, Buffer, CodeBits
from tinycluster.serve.bench.kernels.cases import CHECKED_TOKENS, Case, Model, compare, sample, stopwatch_of
from tinycluster.serve.bench.kernels.trial import Engine, Trial, batch_of

# Up to so many tokens a product is bound by its weights, which must then come from memory as they do in a step.
MOST_STREAMING_TOKENS = 16
MOST_HEAD_TOKENS = 64
MOST_COPIES_OF_A_TILED_PRODUCT = 4
MOST_CHECKED_ROWS = 512


@dataclass(frozen=True)
class LinearShape:
    """A matrix product of the Program. `unit` None is a column-parallel layer, `is_head` one over output rows only."""

    N: int
    K: int
    unit: int | None
    bits: CodeBits
    limit: float = 0.0
    is_head: bool = False

    @property
    def op(self) -> str:
        return "linear" if self.unit is None else "linear_fixed"


def linear_shapes(model: Model) -> list[LinearShape]:
    """Every distinct one, largest first."""
    shapes = set()
    for op in model.program.ops:
        if isinstance(op, p.Linear):
            is_head = model.program.buffers[op.out].rows == "outputs"
            shapes.add(LinearShape(*model.shape_of(op.weight), None, op.bits, is_head=is_head))
        elif isinstance(op, p.LinearFixed):
            shapes.add(LinearShape(*model.shape_of(op.weight), op.unit, op.bits, op.limit))
    return sorted(shapes, key=lambda shape: (-shape.N * shape.K, shape.op, shape.bits))


def linear_cases(
    model: Model, engine: Engine, formats: Sequence[Format], tokens: Sequence[int], rotate_bytes: int
) -> Iterator[Case]:
    """Products over so many copies of a matrix that together they exceed `rotate_bytes`."""
    for shape in linear_shapes(model):
        for format in formats:
            yield from _products(shape, format, engine, tokens, rotate_bytes)


def _products(
    shape: LinearShape, format: Format, engine: Engine, tokens: Sequence[int], rotate_bytes: int
) -> Iterator[Case]:
    rng = np.random.default_rng(shape.N * 31 + shape.K)
    tensor = _matrix(shape, format, rng)
    copies = _copies(tensor, shape, rotate_bytes)
    rows = sample(rng, shape.N, 16, MOST_CHECKED_ROWS)
    for T in tokens:
        if shape.is_head and T > MOST_HEAD_TOKENS:
            continue  # logits are wanted of one row per request
        used = copies if T <= MOST_STREAMING_TOKENS else copies[:MOST_COPIES_OF_A_TILED_PRODUCT]
        x_TK = rng.standard_normal((T, shape.K), np.float32)
        trial = _native(shape, x_TK, used)
        part = _definition(shape, x_TK, _rows(tensor, rows))
        batch = batch_of(T, sample(rng, T, max(1, T // CHECKED_TOKENS), CHECKED_TOKENS))
        yield Case(
            op=shape.op,
            shape=f"{shape.N}×{shape.K}",
            tokens=T,
            num_bytes=copies[0].nbytes + 4 * T * shape.K + (4 if shape.unit is None else 8) * T * shape.N,
            macs=T * shape.N * shape.K,
            is_correct=compare(trial, part, engine, batch, columns=rows),
            stopwatch=stopwatch_of(trial, engine, batch),
            format=format,
            code_bits=shape.bits if format in ("q8", "q4") else None,
            from_memory=sum(copy.nbytes for copy in used) > rotate_bytes,
        )


def _matrix(shape: LinearShape, format: Format, rng: np.random.Generator) -> HostTensor:
    """Random weights in `format`, or in float32 where units are no whole groups: those the kernels pad themselves."""
    dense = DenseTensor("f32", rng.standard_normal((shape.N, shape.K), np.float32) / np.float32(16))
    has_whole_groups = shape.K % GROUP == 0 and (shape.unit or GROUP) % GROUP == 0
    return prepare(dense, unit=shape.unit, format=format if has_whole_groups else "f32")


def _copies(tensor: HostTensor, shape: LinearShape, rotate_bytes: int) -> list[PackedWeight]:
    arena = Arena()
    first = pack(tensor, unit=shape.unit, arena=arena)
    num_more = rotate_bytes // max(first.nbytes, 1)
    return [first, *(pack(tensor, unit=shape.unit, arena=arena) for _ in range(num_more))]


def _native(shape: LinearShape, x_TK: F32, copies: Sequence[PackedWeight]) -> Trial:
    packed = {f"copy {index}": copy for index, copy in enumerate(copies)}
    return replace(_trial(shape, x_TK, shape.N, tuple(packed)), packed=packed)


def _definition(shape: LinearShape, x_TK: F32, rows: HostTensor) -> Trial:
    return replace(_trial(shape, x_TK, rows.shape[0], ("copy 0",)), plain={"copy 0": rows})


def _trial(shape: LinearShape, x_TK: F32, N: int, names: Sequence[str]) -> Trial:
    if shape.unit is None:
        products: tuple[p.Op, ...] = tuple(p.Linear("x", name, "out", bits=shape.bits) for name in names)
        return Trial({"x": x_TK}, products, "out", {"out": Buffer(N)})
    products = tuple(p.LinearFixed("x", name, "fixed", shape.unit, shape.limit, shape.bits) for name in names)
    return Trial(
        {"x": x_TK, "out": np.zeros((len(x_TK), N), np.float32)},
        products,
        "out",
        {"fixed": Buffer(N, dtype="int64"), "out": Buffer(N)},
        before=products[:1],  # a run without the op has numbers to add, too
        after=(p.AddFixed("out", "fixed"),),
    )


def _rows(tensor: HostTensor, rows: I32) -> HostTensor:
    if isinstance(tensor, DenseTensor):
        return DenseTensor(tensor.format, tensor.values[rows])
    minimums = None if tensor.minimums_NG is None else tensor.minimums_NG[rows]
    return GroupedTensor(tensor.format, tensor.codes_NK[rows], tensor.scales_NG[rows], minimums)

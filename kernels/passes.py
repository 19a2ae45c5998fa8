"""Passes over a Program: each returns another Program that computes the same bits in fewer, larger ops.

`lower` makes the quantization of activations explicit, which the native plan needs; PASSES are optional, and a test
runs each Program with and without every one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from tinycluster.kernels import program as p
from tinycluster.kernels.formats import GROUP, Format
from tinycluster.kernels.program import Buffer, CodeBits, DType, Op, Program

_ROW_OPS = (p.Embedding, p.RmsNorm, p.AddFixed, p.Rope, p.WriteKV, p.SwiGlu, p.Quantize, p.GatherRows)


@dataclass(frozen=True)
class MatrixShape:
    """What passes need to know of a packed weight."""

    format: Format
    rows: int
    columns: int
    unit: int

    @property
    def is_grouped(self) -> bool:
        return self.format in ("q8", "q4")

    @property
    def padded_columns(self) -> int:
        """Columns with every unit rounded up to whole groups."""
        units = [min(self.unit, self.columns - start) for start in range(0, self.columns, self.unit)]
        return sum(-(-unit // GROUP) * GROUP for unit in units)


Matrices = Mapping[str, MatrixShape]
Pass = Callable[[Program, Matrices], Program]


def reads(op: Op) -> set[str]:
    """Names of the buffers whose contents an op needs from the ops before it."""
    match op:
        case p.RowGroup(ops) | p.TokenBlocks(ops):
            needed, made = set[str](), set[str]()
            for part in ops:
                needed |= reads(part) - made
                made |= writes(part)
            return needed
        case p.Products(parts):
            return {part.x for part in parts}
        case p.GateUp(gate, _, _):
            return {gate.x}
        case p.LinearResidual(product, residual, _):
            return {product.x, residual}
        case p.WriteKV(k, v, _):
            return {k, v}
        case p.Attention() as attention:
            return {attention.q}
        case p.SwiGlu(gate, up, _):
            return {gate, up}
        case p.AddFixed(x, fixed, _):
            return {x, fixed}
        case p.Embedding() | p.Recv():
            return set()
        case _:
            return {op.x}


def writes(op: Op) -> set[str]:
    """Names of the buffers that an op fills or changes."""
    match op:
        case p.RowGroup(ops) | p.TokenBlocks(ops):
            return {name for part in ops for name in writes(part)}
        case p.Products(parts):
            return {part.out for part in parts}
        case p.LinearResidual(_, residual, _):
            return {residual}
        case p.AddFixed(x) | p.Rope(x) | p.AllReduce(x) | p.ReduceScatter(x) | p.GatherDealt(x):
            return {x}
        case p.AllGather(_, _, out):
            return {out, parts_of(op)}
        case p.WriteKV() | p.Send():
            return set()
        case _:
            return {op.out}


def parts_of(gather: p.AllGather) -> str:
    """The buffer in which a gather of columns first lays the ranks' matrices end to end."""
    return f"{gather.out}.parts"


Activations = Literal["int16", "mixed", "int8"]


def round_activations(program: Program, activations: Activations) -> Program:
    """The Program with the bits that integer weights see of their input: 16, 8, or 8 for the MLP's gate and up alone.

    16 bits leave the weights' own rounding as the only one that matters, and cost no time where memory is the limit
    (few tokens). 8 halve the arithmetic. Gate and up are half of a layer's arithmetic and see a normed row; what
    attention and the activation put out has larger outliers, and the head's rounding is the answer's.
    """
    into_mlp = {name for op in program.ops if isinstance(op, p.SwiGlu) for name in (op.gate, op.up)}

    def bits_of(op: p.Linear | p.LinearFixed) -> CodeBits:
        return 8 if activations == "int8" or (activations == "mixed" and op.out in into_mlp) else 16

    ops = [replace(op, bits=bits_of(op)) if isinstance(op, p.Linear | p.LinearFixed) else op for op in program.ops]
    return replace(program, ops=ops)


def lower(program: Program, matrices: Matrices) -> Program:
    """What the native plan needs beside the ops: room for gathers, and codes for products with grouped weights.

    Codes are made once for products of the same input and the same groups.
    """
    buffers, ops = dict(program.buffers), list[Op]()
    made: dict[str, str] = {}  # buffer of codes -> its source, as long as the source has not changed
    for op in program.ops:
        if isinstance(op, p.Linear | p.LinearFixed) and matrices[op.weight].is_grouped:
            matrix = matrices[op.weight]
            dtype: DType = "codes8" if op.bits == 8 else "codes16"
            codes = f"{op.x}.{dtype}{'' if matrix.unit >= matrix.columns else f'.{matrix.unit}'}"
            if codes not in made:
                buffers[codes] = Buffer(matrix.padded_columns, buffers[op.x].rows, dtype)
                ops.append(p.Quantize(op.x, op.weight, codes))
                made[codes] = op.x
            op = replace(op, x=codes)
        if isinstance(op, p.AllGather):
            buffers[parts_of(op)] = buffers[op.out]
        ops.append(op)
        made = {codes: source for codes, source in made.items() if source not in writes(op)}
    return replace(program, ops=ops, buffers=buffers)


def join_products(program: Program, matrices: Matrices) -> Program:
    """Neighbouring column-parallel products of one input become one op: QKV, gate and up."""
    ops = list[Op]()
    for op in program.ops:
        last = ops[-1] if ops else None
        if isinstance(op, p.Linear) and isinstance(last, p.Products) and last.parts[0].x == op.x:
            ops[-1] = p.Products((*last.parts, op))
        else:
            ops.append(p.Products((op,)) if isinstance(op, p.Linear) else op)
    return replace(program, ops=ops)


def fuse_gate_up(program: Program, matrices: Matrices) -> Program:
    """Gate, up and SwiGLU become one op, which also quantizes where nothing but codes is wanted of its result."""
    ops = list[Op]()
    rest = _Rest(program)
    while rest.ops:
        fused = _gate_up(rest, program, matrices)
        ops.append(fused or rest.take())
    return replace(program, ops=ops)


def add_residuals(program: Program, matrices: Matrices) -> Program:
    """A row-parallel product that no other rank shares in is added to the residual at once."""
    ops = list[Op]()
    for op in program.ops:
        last = ops[-1] if ops else None
        if isinstance(op, p.AddFixed) and isinstance(last, p.LinearFixed) and last.out == op.fixed:
            ops[-1] = p.LinearResidual(last, op.x, op.bias)
        else:
            ops.append(op)
    return replace(program, ops=ops)


def group_rows(program: Program, matrices: Matrices) -> Program:
    """Neighbouring row ops run together: residual, norm and quantization; rope and the write to the cache."""
    ops = list[Op]()
    for op in program.ops:
        last = ops[-1] if ops else None
        if not isinstance(op, _ROW_OPS):
            ops.append(op)
        elif isinstance(last, p.RowGroup) and rows_of(last, program) == rows_of(op, program):
            ops[-1] = p.RowGroup((*last.ops, op))
        else:
            ops.append(p.RowGroup((op,)))
    return replace(program, ops=ops)


def deal_rows(program: Program, matrices: Matrices) -> Program:
    """What follows a row-parallel product row by row is computed once, by all tensor ranks together, instead of by
    every one: each sums its share of the rows, and what it makes of them is gathered where others need it.

    Residuals are not: only the next such group reads them, and it deals the rows alike.
    """
    ops = list[Op]()
    for index, op in enumerate(program.ops):
        last = ops[-1] if ops else None
        if isinstance(op, p.RowGroup) and isinstance(last, p.AllReduce) and _is_sum_of(last, op):
            ops[-1] = p.ReduceScatter(last.x)
            ops.append(p.RowGroup(op.ops, are_dealt=True))
            rest = program.ops[index + 1 :]
            ops += [p.GatherDealt(name) for name in sorted(writes(op)) if _is_read_whole(name, rest)]
        else:
            ops.append(op)
    return replace(program, ops=ops)


def block_tokens(program: Program, matrices: Matrices) -> Program:
    """A row-parallel product, its sum over the ranks and what each makes of its rows: a block of tokens at a time."""
    ops = list[Op]()
    for op in program.ops:
        match (ops[-2:], op):
            case ([p.LinearFixed() as product, p.ReduceScatter() as summed], p.RowGroup(are_dealt=True)):
                ops[-2:] = [p.TokenBlocks((product, summed, op))]
            case ([*_, p.TokenBlocks(members)], p.GatherDealt()):
                ops[-1] = p.TokenBlocks((*members, op))
            case _:
                ops.append(op)
    return replace(program, ops=ops)


def _is_sum_of(reduced: p.AllReduce, rows: Op) -> bool:
    """Whether a group of row ops begins by adding what was summed to the residual."""
    return isinstance(rows, p.RowGroup) and isinstance(rows.ops[0], p.AddFixed) and rows.ops[0].fixed == reduced.x


def _is_read_whole(name: str, rest: Sequence[Op]) -> bool:
    """Whether ops read a buffer that are not dealt, before it is written anew."""
    for before, op in zip((None, *rest), rest, strict=False):
        is_dealt = isinstance(before, p.AllReduce) and _is_sum_of(before, op)
        if name in reads(op) and not is_dealt:
            return True
        if name in writes(op):
            return False
    return False


@dataclass(frozen=True)
class _Uses:
    """Where a Program's buffers are used, found once: a Program may have thousands of ops."""

    writers: Mapping[str, Sequence[int]]
    last: Mapping[str, int]
    """The last op that reads or writes a buffer."""

    @classmethod
    def of(cls, program: Program) -> _Uses:
        writers, last = dict[str, list[int]](), dict[str, int]()
        for index, op in enumerate(program.ops):
            written = writes(op)
            for name in written:
                writers.setdefault(name, []).append(index)
            last |= dict.fromkeys(reads(op) | written, index)
        return cls(writers, last)

    def may_replace(self, index: int, source: str, out: str) -> bool:
        """Whether op `index` alone writes `out`, and nobody after it uses `source`."""
        return self.writers[out] == [index] and self.last[source] <= index


def reuse_in_place(program: Program, matrices: Matrices) -> Program:
    """A norm or an activation whose input is not needed again writes over it."""
    renamed: dict[str, str] = {}
    ops, uses = list[Op](), _Uses.of(program)
    for index, op in enumerate(program.ops):
        op = _renamed(op, renamed)
        if isinstance(op, p.RmsNorm | p.SwiGlu):
            source = op.x if isinstance(op, p.RmsNorm) else op.gate
            is_taken = op.out == program.output or op.out in renamed
            is_alike = program.buffers[source] == program.buffers.get(op.out)
            if is_alike and not is_taken and uses.may_replace(index, source, op.out):
                renamed[op.out] = source
                op = replace(op, out=source)
        ops.append(op)
    buffers = {name: buffer for name, buffer in program.buffers.items() if name not in renamed}
    return replace(program, ops=ops, buffers=buffers)


PASSES: tuple[Pass, ...] = (
    reuse_in_place,
    join_products,
    fuse_gate_up,
    add_residuals,
    group_rows,
    deal_rows,
    block_tokens,
)


def optimize(program: Program, matrices: Matrices, passes: Sequence[Pass] = PASSES) -> Program:
    """The lowered Program after the passes, in order."""
    program = lower(program, matrices)
    for run in passes:
        program = run(program, matrices)
    return program


def rows_of(op: Op, program: Program) -> p.Rows:
    """Whether a row op goes over tokens or over output rows."""
    op = op.ops[0] if isinstance(op, p.RowGroup) else op
    if isinstance(op, p.WriteKV):
        return "tokens"
    return program.buffers[next(iter(writes(op)))].rows


class _Rest:
    """The ops that are still to come."""

    def __init__(self, program: Program) -> None:
        self.ops = list(program.ops)

    def take(self) -> Op:
        return self.ops.pop(0)

    def is_read(self, name: str, start: int) -> bool:
        """Whether ops from `start` on use what the buffer holds then."""
        for op in self.ops[start:]:
            if name in reads(op):
                return True
            if name in writes(op):
                return False
        return False


def _gate_up(rest: _Rest, program: Program, matrices: Matrices) -> p.GateUp | None:
    match rest.ops[:2]:
        case [p.Products((gate, up)), p.SwiGlu(g, u, out)] if (gate.out, up.out) == (g, u):
            pass
        case _:
            return None
    a, b = matrices[gate.weight], matrices[up.weight]
    if (a.format, a.rows) != (b.format, b.rows) or a.rows % GROUP:
        return None
    if any(name != out and rest.is_read(name, 2) for name in (g, u)):
        return None
    length = 2
    match rest.ops[2:3]:
        case [p.Quantize(x, weight, codes)] if x == out and not rest.is_read(out, 3):
            if matrices[weight].unit % GROUP == 0 or matrices[weight].unit >= a.rows:
                length, out = 3, codes
    del rest.ops[:length]
    return p.GateUp(gate, up, out)


def _renamed(op: Op, names: Mapping[str, str]) -> Op:
    values: dict[str, Any] = {f.name: getattr(op, f.name) for f in fields(op)}
    changed: Any = {key: names[value] for key, value in values.items() if isinstance(value, str) and value in names}
    return replace(op, **changed) if changed else op


def walk(ops: Sequence[Op]) -> Iterator[Op]:
    """The ops, with the members of groups in place of the groups."""
    for op in ops:
        if isinstance(op, p.RowGroup | p.TokenBlocks):
            yield from walk(op.ops)
        else:
            yield op

"""What a rank will run: its Program as the model file states it, and the plan that the passes make of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

from tinycluster.cluster.blueprint import Blueprint
from tinycluster.engine.checkpoint import Checkpoint
from tinycluster.engine.models.registry import build
from tinycluster.engine.weights import BYTES_PER_WEIGHT, held_format
from tinycluster.kernels import program as p
from tinycluster.kernels.formats import GROUP
from tinycluster.kernels.memory_plan import place, row_bytes
from tinycluster.kernels.paged_cache import PagedCache
from tinycluster.kernels.passes import MatrixShape, optimize, reads, round_activations, walk, writes
from tinycluster.kernels.program import Op, Program
from tinycluster.parallel.units import Shares, WeightSpec


def explain(blueprint: Blueprint, checkpoint: Checkpoint, rank: int, *, max_tokens: int, max_outputs: int) -> str:
    """Ops, buffers and bytes of one rank, before and after the passes, for steps of so many rows."""
    shares = blueprint.shares(rank, checkpoint.config)
    program, specs = build(checkpoint.config, blueprint.stage(rank), shares)
    program = round_activations(program, blueprint.activations)
    shapes = _matrix_shapes(blueprint, checkpoint, specs, shares)
    plan = optimize(program, shapes)
    rows = {"tokens": max_tokens, "outputs": max_outputs}
    apart = sum(rows[b.rows] * row_bytes(b) for b in program.buffers.values())
    used = place(plan, max_tokens=max_tokens, max_outputs=max_outputs)
    title = f"{blueprint.name}, rank {rank} of {blueprint.mesh.size}, steps of {max_tokens} tokens"
    return "\n".join(
        [
            title,
            _cache(program, blueprint),
            "",
            f"As the model file states it: {len(program.ops)} ops, {len(program.buffers)} buffers, {apart:,} bytes",
            *_table(program, shapes),
            "",
            f"As it is run: {len(plan.ops)} ops, {len(used.offsets)} buffers in an arena of {used.num_bytes:,} bytes",
            *_table(plan, shapes),
        ]
    )


def _cache(program: Program, blueprint: Blueprint) -> str:
    blocks, tokens, dtype = blueprint.num_blocks, blueprint.block_tokens, blueprint.kv_dtype
    num_bytes = blocks * PagedCache.bytes_per_block(program.kv, tokens, dtype)
    return f"Keys and values in {dtype}: {blocks:,} blocks of {tokens} tokens, {num_bytes:,} bytes"


def _matrix_shapes(
    blueprint: Blueprint, checkpoint: Checkpoint, specs: tuple[WeightSpec, ...], shares: Shares
) -> dict[str, MatrixShape]:
    stored = checkpoint.tensors()
    shapes = {}
    for spec in specs:
        if len(spec.shape) == 1:
            continue
        rows, columns = (len(part) for part in spec.slices(shares))
        unit = spec.split.unit if spec.split is not None and spec.split_dim == 1 else columns
        held = held_format(spec, stored[spec.name].format, blueprint.wanted_format)
        is_regrouped = held == stored[spec.name].format and held in ("q8", "q4") and min(unit, columns) % GROUP
        shapes[spec.name] = MatrixShape("f32" if is_regrouped else held, rows, columns, max(1, min(unit, columns)))
    return shapes


def _table(program: Program, shapes: Mapping[str, MatrixShape]) -> Iterator[str]:
    for index, op in enumerate(program.ops):
        ins, outs = (", ".join(sorted(names)) for names in (reads(op), writes(op)))
        weights = sum(prod((shapes[w].rows, shapes[w].columns)) * BYTES_PER_WEIGHT[shapes[w].format] for w in _of(op))
        size = f"  {weights:,.0f} bytes of weights" if weights else ""
        yield f"{index:4}  {_name(op)}: {ins or '-'} -> {outs or '-'}{size}"


def _name(op: Op) -> str:
    if isinstance(op, p.RowGroup | p.TokenBlocks):
        return " + ".join(_name(part) for part in op.ops)
    return type(op).__name__ + (f" × {len(op.parts)}" if isinstance(op, p.Products) else "")


def _of(op: Op) -> Iterator[str]:
    """The matrices that an op multiplies with."""
    for part in walk([op]):
        match part:
            case p.Products(parts):
                yield from (product.weight for product in parts)
            case p.GateUp(gate, up, _):
                yield from (gate.weight, up.weight)
            case p.LinearResidual(product, _, _):
                yield product.weight
            case p.Linear() | p.LinearFixed():
                yield part.weight

"""Where the buffers of a Program lie in one arena. Buffers that are never alive together share memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tinycluster.kernels.formats import GROUP
from tinycluster.kernels.passes import reads, writes
from tinycluster.kernels.program import Buffer, Program

ALIGNMENT = 64


@dataclass(frozen=True)
class Placement:
    """Bytes of each buffer's first row in the arena, and the arena's size."""

    offsets: Mapping[str, int]
    num_bytes: int


def row_bytes(buffer: Buffer) -> int:
    """Memory of one row. Each group of codes carries a scale, an offset and a sum."""
    if buffer.code_bits:
        return buffer.width // GROUP * (GROUP * buffer.code_bits // 8 + 12)
    return buffer.width * (8 if buffer.dtype == "int64" else 4)


def lifetimes(program: Program) -> dict[str, int]:
    """The ops during which each buffer must keep its contents, as bits: bit i stands for op i.

    A buffer that is written anew in every layer is free between its last reader and its next writer.
    """
    found: dict[str, int] = {}
    alive = set() if program.output is None else {program.output}
    for index, op in reversed(list(enumerate(program.ops))):
        for name in alive | reads(op) | writes(op):
            found[name] = found.get(name, 0) | 1 << index
        alive = (alive - writes(op)) | reads(op)
    return found


def place(program: Program, *, max_tokens: int, max_outputs: int) -> Placement:
    """Best fit: the largest buffers first, each in the smallest gap between those alive with it that holds it."""
    alive = lifetimes(program)
    rows = {"tokens": max_tokens, "outputs": max_outputs}
    sizes = {
        name: -(-rows[buffer.rows] * row_bytes(buffer) // ALIGNMENT) * ALIGNMENT
        for name, buffer in program.buffers.items()
        if name in alive
    }
    offsets: dict[str, int] = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        taken = sorted((offsets[o], offsets[o] + sizes[o]) for o in offsets if alive[o] & alive[name])
        offsets[name] = _best_gap(taken, sizes[name])
    return Placement(offsets, max((offsets[name] + sizes[name] for name in offsets), default=0))


def _best_gap(taken: list[tuple[int, int]], size: int) -> int:
    best, best_gap, end = -1, -1, 0
    for start, stop in taken:
        gap = start - end
        if gap >= size and (best < 0 or gap < best_gap):
            best, best_gap = end, gap
        end = max(end, stop)
    return end if best < 0 else best

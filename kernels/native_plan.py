"""Compiles a Program into a native plan: names of buffers become numbers, names of weights become pointers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinycluster.kernels import program as p
from tinycluster.kernels._cpu import Cpu, KVCache, Plan, Weight
from tinycluster.kernels.memory_plan import place
from tinycluster.kernels.passes import parts_of, rows_of
from tinycluster.kernels.program import F32, Collectives, Op, Program


@dataclass(frozen=True)
class Parts:
    """What a plan points to; it must outlive the plan."""

    matrices: Mapping[str, Weight]
    vectors: Mapping[str, F32]
    rope: tuple[F32, F32]
    layers: Sequence[KVCache]
    collectives: Collectives | None


class NativePlan:
    """The plan of one Program and the arena that its buffers share. The arena grows with the largest step."""

    def __init__(self, cpu: Cpu, program: Program, parts: Parts) -> None:
        self._parts, self._program = parts, program
        self.native = Plan(cpu, len(parts.rope[0]))
        self._numbers = {
            name: self.native.buffer(buffer.width, buffer.rows == "outputs", buffer.code_bits or 0)
            for name, buffer in self._program.buffers.items()
        }
        for op in self._program.ops:
            self._add(op)
        self._max_rows = {"tokens": 0, "outputs": 0}
        self._arena: NDArray[np.uint8] = np.empty(0, np.uint8)
        self._offsets: Mapping[str, int] = {}

    def reserve(self, num_tokens: int, num_outputs: int) -> None:
        """Make room for a step of so many rows."""
        wanted = {"tokens": num_tokens, "outputs": num_outputs}
        if all(wanted[rows] <= most for rows, most in self._max_rows.items()):
            return
        self._max_rows = {rows: max(most, _rounded(wanted[rows])) for rows, most in self._max_rows.items()}
        max_tokens, max_outputs = self._max_rows["tokens"], self._max_rows["outputs"]
        placement = place(self._program, max_tokens=max_tokens, max_outputs=max_outputs)
        self._arena, self._offsets = _aligned(placement.num_bytes), placement.offsets
        offsets = [placement.offsets.get(name, 0) for name in self._program.buffers]
        self.native.place(offsets, self._arena, max_tokens, max_outputs)

    def output(self, name: str, num_rows: int) -> F32:
        """A view of a float32 buffer: valid until the next step."""
        width = self._program.buffers[name].width
        start = self._offsets[name]
        return self._arena[start : start + num_rows * width * 4].view(np.float32).reshape(num_rows, width)

    def _add(self, op: Op) -> None:
        match op:
            case p.RowGroup(ops, are_dealt):
                self._add_rows(ops, are_dealt)
            case p.TokenBlocks(ops):
                self.native.open_blocks("blocks of tokens", self._collectives.tensor_table)
                for member in ops:
                    self._add(member)
                self.native.close_blocks()
            case p.Products(parts):
                self._add_products([self._part(part.x, part.weight, part.bias, part.out) for part in parts], parts)
            case p.Linear(x, weight, out, bias):
                self._add_products([self._part(x, weight, bias, out)], (op,))
            case p.LinearFixed(x, weight, out, _, limit):
                self._add_products([self._part(x, weight, None, out, limit)], (op,))
            case p.LinearResidual(product, residual, bias):
                part = self._part(product.x, product.weight, bias, residual, product.limit, is_residual=True)
                self._add_products([part], (product,))
            case p.GateUp():
                self._add_gate_up(op)
            case p.Attention():
                self._add_attention(op)
            case p.AllReduce() | p.ReduceScatter() | p.AllGather() | p.GatherDealt() | p.Send() | p.Recv():
                self._add_collective(op)
            case _:
                self._add_rows((op,))

    def _part(
        self, x: str, weight: str, bias: str | None, out: str, limit: float = 0.0, is_residual: bool = False
    ) -> tuple[int, Weight, F32 | None, int, float, bool]:
        number, matrix = self._numbers, self._parts.matrices[weight]
        return number[x], matrix, self._vector(bias), number[out], limit, is_residual

    def _vector(self, name: str | None) -> F32 | None:
        return None if name is None else self._parts.vectors[name]

    def _add_products(self, parts: list[Any], products: Sequence[p.Linear | p.LinearFixed]) -> None:
        self.native.products(" + ".join(product.weight for product in products), parts)

    def _add_gate_up(self, op: p.GateUp) -> None:
        gate, up = op.gate, op.up
        self.native.gate_up(
            f"{gate.weight} + {up.weight}",
            self._numbers[gate.x],
            self._parts.matrices[gate.weight],
            self._vector(gate.bias),
            self._parts.matrices[up.weight],
            self._vector(up.bias),
            self._numbers[op.out],
            self._program.buffers[op.out].code_bits is not None,
        )

    def _add_attention(self, op: p.Attention) -> None:
        q, out = self._numbers[op.q], self._numbers[op.out]
        cache, heads = self._parts.layers[op.layer], list(op.kv_head_of_head)
        self.native.attention(f"attention {op.layer}", q, cache, heads, op.scale, op.window or 0, out)

    def _add_rows(self, ops: Sequence[Op], are_dealt: bool = False) -> None:
        names = " + ".join(type(op).__name__ for op in ops)
        table = self._collectives.tensor_table if are_dealt else None
        self.native.open_rows(names, rows_of(ops[0], self._program) == "outputs", table)
        for op in ops:
            self._add_row_op(op)

    def _add_row_op(self, op: Op) -> None:
        plan, number = self.native, self._numbers
        match op:
            case p.Embedding(weight, first_row, out):
                plan.embedding(self._parts.matrices[weight], first_row, number[out])
            case p.RmsNorm(x, weight, eps, _, out):
                plan.rms_norm(number[x], self._parts.vectors[weight], eps, number[out])
            case p.AddFixed(x, fixed, bias):
                plan.add_fixed(number[x], number[fixed], self._vector(bias))
            case p.Rope(x, head_dim):
                plan.rope(number[x], *self._parts.rope, head_dim)
            case p.WriteKV(k, v, layer):
                plan.write_kv(number[k], number[v], self._parts.layers[layer])
            case p.SwiGlu(gate, up, out):
                plan.swiglu(number[gate], number[up], number[out])
            case p.Quantize(x, weight, out):
                plan.quantize(number[x], self._parts.matrices[weight], number[out])
            case p.GatherRows(x, out):
                plan.gather_rows(number[x], number[out])
            case _:
                raise TypeError(f"{type(op).__name__} is not a row op")

    @property
    def _collectives(self) -> Collectives:
        assert self._parts.collectives is not None, "a Program with collectives needs ranks around it"
        return self._parts.collectives

    def _add_collective(self, op: Op) -> None:
        plan, number, collectives = self.native, self._numbers, self._collectives
        match op:
            case p.AllReduce(x):
                is_fixed = self._program.buffers[x].dtype == "int64"
                plan.all_reduce(f"all_reduce {x}", collectives.tensor_table, number[x], is_fixed)
            case p.ReduceScatter(x):
                plan.reduce_scatter(f"reduce_scatter {x}", collectives.tensor_table, number[x])
            case p.GatherDealt(x):
                plan.gather_dealt(f"all_gather {x}", collectives.tensor_table, number[x])
            case p.AllGather(x, widths, out):
                joined = number[parts_of(op)]
                plan.gather_logits(f"all_gather {x}", collectives.tensor_table, number[x], widths, joined, number[out])
            case p.Send(x):
                plan.transfer(f"send {x}", *_link(collectives.next_table), number[x], True)
            case p.Recv(out):
                plan.transfer(f"recv {out}", *_link(collectives.previous_table), number[out], False)


def _link(table: tuple[object, int] | None) -> tuple[object, int]:
    assert table is not None, "the first stage receives from none, the last sends to none"
    return table


def _rounded(num_rows: int) -> int:
    """The next power of two, so that slowly growing steps do not move the arena each time."""
    return 1 << max(0, num_rows - 1).bit_length()


def _aligned(num_bytes: int) -> NDArray[np.uint8]:
    memory = np.empty(num_bytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + num_bytes]

"""A plain interpreter of Programs in float64, and the distance from it that float32 arithmetic explains.

All tensor ranks of a stage are interpreted side by side, op by op, so collectives are plain sums and joins. One
request, whole sequence, no blocks.

The bound on a float32 execution is measured, not chosen: every op's result is moved at random by what rounding may do
to it, u √n times the sum of the magnitudes of the n addends (Higham & Mary 2019, "A new approach to probabilistic
rounding error analysis"; Parker 1997, "Monte Carlo arithmetic"), and the spread of the logits is what such an
execution may be off by. Worst-case bounds grow a thousandfold per layer, because they forget that errors are related.

Shape legend: T = tokens (also positions), P = positions of the table, V = vocabulary, C = head_dim, F = C / 2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tinycluster.kernels.program import (
    F32,
    AddFixed,
    AllGather,
    AllReduce,
    Attention,
    Embedding,
    GatherRows,
    Linear,
    LinearFixed,
    Op,
    Program,
    Recv,
    RmsNorm,
    Rope,
    Send,
    SwiGlu,
    WriteKV,
)

F64 = NDArray[np.float64]
U = 2.0**-24
EXP_ROUNDINGS = 4
"""An exp, its argument's rounding and its quotient, in units of U; numpy's, torch's and ours are within 2 ulp."""
NUM_SAMPLES = 4
STANDARD_DEVIATIONS = 6


@dataclass(frozen=True)
class Rounding:
    """Moves a value by a normal deviate times U times `size`; exact when it has no generator."""

    generator: np.random.Generator | None = None

    def __call__(self, value: F64, size: F64) -> F64:
        return value if self.generator is None else value + U * size * self.generator.standard_normal(value.shape)


@dataclass
class Rank:
    """One rank's Program, its slices of the weights, and its buffers (T, width)."""

    program: Program
    weights: Mapping[str, F32]
    buffers: dict[str, F64] = field(default_factory=dict)
    cache: dict[int, tuple[F64, F64]] = field(default_factory=dict)


Stages = Sequence[Sequence[Rank]]
"""The tensor ranks of each pipeline stage."""


@dataclass(frozen=True)
class RopeTable:
    """cos and sin (P, F) and the angles that they belong to, for the rounding of angles."""

    cos: F64
    sin: F64
    angles: F64

    @classmethod
    def of(cls, table: tuple[F32, F32], inv_freq_F: F32) -> RopeTable:
        cos, sin = (part.astype(np.float64) for part in table)
        return cls(cos, sin, np.arange(len(cos), dtype=np.float64)[:, None] * inv_freq_F)

    def rounded(self, rounding: Rounding) -> RopeTable:
        """The frequencies carry up to 8 roundings, the same for all positions; each angle and each entry 2 more."""
        shift = rounding(np.zeros(self.angles.shape[1]), np.full(self.angles.shape[1], 8.0)) * self.angles
        shift = rounding(shift, self.angles)
        cos, sin = self.cos - shift * self.sin, self.sin + shift * self.cos
        return RopeTable(rounding(cos, 2 * np.abs(cos)), rounding(sin, 2 * np.abs(sin)), self.angles)


def interpret(stages: Stages, tokens: Sequence[int], rope: RopeTable, rounding: Rounding | None = None) -> F64:
    """Logits (T, V) of every position of one sequence."""
    step = _Step(np.array(tokens), rope, rounding or Rounding())
    for ranks in stages:
        for ops in zip(*(rank.program.ops for rank in ranks), strict=True):
            step.run(ops, ranks)
            _check_widths(ranks)
    output = stages[-1][0].program.output
    assert output is not None
    return stages[-1][0].buffers[output]


def float32_bound(make_stages: Callable[[], Stages], tokens: Sequence[int], rope: RopeTable) -> F64:
    """How far each position's logits (T, 1) of a float32 execution, in whatever order it sums, are from `interpret`."""
    exact = interpret(make_stages(), tokens, rope)
    generator = np.random.default_rng(0)
    square = np.zeros((len(tokens), 1))
    for _ in range(NUM_SAMPLES):
        rounding = Rounding(generator)
        moved = interpret(make_stages(), tokens, rope.rounded(rounding), rounding)
        square += ((moved - exact) ** 2).mean(axis=1, keepdims=True) / NUM_SAMPLES
    return STANDARD_DEVIATIONS * np.sqrt(square)


def _check_widths(ranks: Sequence[Rank]) -> None:
    for rank in ranks:
        for name, buffer in rank.buffers.items():
            assert buffer.shape[1] == rank.program.buffers[name].width, name


@dataclass
class _Step:
    tokens: NDArray[np.int64]
    rope: RopeTable
    rounding: Rounding
    sent: F64 | None = None

    def run(self, ops: tuple[Op, ...], ranks: Sequence[Rank]) -> None:
        """One op on every rank: a collective joins their buffers, anything else runs rank by rank."""
        match ops[0]:
            case AllReduce(x):
                total = np.sum([rank.buffers[x] for rank in ranks], axis=0)
                for rank in ranks:
                    rank.buffers[x] = total
            case AllGather(x, widths, out):
                assert widths == tuple(rank.buffers[x].shape[1] for rank in ranks)
                whole = np.hstack([rank.buffers[x] for rank in ranks])
                for rank in ranks:
                    rank.buffers[out] = whole
            case Send(x):
                self.sent = ranks[0].buffers[x]
            case Recv(out):
                assert self.sent is not None
                for rank in ranks:
                    rank.buffers[out] = self.sent
            case _:
                for op, rank in zip(ops, ranks, strict=True):
                    self.run_alone(op, rank.buffers, rank)

    def run_alone(self, op: Op, buffers: dict[str, F64], rank: Rank) -> None:
        match op:
            case Embedding(weight, first_row, out):
                buffers[out] = _embed(self.tokens, rank.weights[weight], first_row)
            case RmsNorm(x, weight, eps, dim, out):
                buffers[out] = self.rms_norm(buffers[x], rank.weights[weight], eps, dim)
            case Linear(x, weight, out, bias):
                product = self.linear(buffers[x], rank.weights[weight])
                buffers[out] = product if bias is None else self.add(product, rank.weights[bias])
            case LinearFixed(x, weight, out, limit=limit):
                buffers[out] = self.linear(buffers[x], rank.weights[weight])
                assert np.all(np.abs(buffers[out]) < limit)
            case AddFixed(x, fixed, bias):
                addend = buffers[fixed] if bias is None else self.add(buffers[fixed], rank.weights[bias])
                buffers[x] = self.add(buffers[x], addend)
            case Rope(x, head_dim):
                buffers[x] = self.rotate(buffers[x], head_dim)
            case WriteKV(k, v, layer):
                rank.cache[layer] = (buffers[k], buffers[v])
            case Attention(q, layer, head_dim, kv_head_of_head, scale, window, out):
                q_THC = buffers[q].reshape(len(self.tokens), -1, head_dim)
                k_TKC, v_TKC = (part.reshape(len(self.tokens), -1, head_dim) for part in rank.cache[layer])
                heads = [
                    self.attend(q_THC[:, head], k_TKC[:, kv_head], v_TKC[:, kv_head], scale, window)
                    for head, kv_head in enumerate(kv_head_of_head)
                ]
                buffers[out] = np.hstack([np.zeros((len(self.tokens), 0)), *heads])
            case SwiGlu(gate, up, out):
                product = buffers[gate] / (1 + np.exp(-buffers[gate])) * buffers[up]
                buffers[out] = self.rounding(product, (EXP_ROUNDINGS + np.abs(buffers[gate])) * np.abs(product))
            case GatherRows(x, out):
                buffers[out] = buffers[x]
            case _:
                raise AssertionError(f"{op} joins ranks")

    def add(self, x: F64, y: F64 | F32) -> F64:
        return self.rounding(x + y, np.abs(x + y))

    def linear(self, x: F64, weight: F32) -> F64:
        W = weight.astype(np.float64).T
        return self.rounding(x @ W, np.sqrt(len(W)) * (np.abs(x) @ np.abs(W)))

    def rms_norm(self, x: F64, weight: F32, eps: float, dim: int) -> F64:
        rows = x.reshape(-1, dim)
        square = (rows**2).mean(axis=1, keepdims=True)
        # dim squares are added, then come the quotient, eps and the root; the root halves their errors.
        square = self.rounding(square + eps, (np.sqrt(dim) + 4) * square)
        out = rows / np.sqrt(square) * weight
        return self.rounding(out, 2 * np.abs(out)).reshape(x.shape)

    def rotate(self, x: F64, head_dim: int) -> F64:
        """Halves convention: column f turns with column f + F."""
        T, F = len(x), head_dim // 2
        pairs = x.reshape(T, -1, 2, F)
        first, second = pairs[:, :, 0], pairs[:, :, 1]
        cos, sin = self.rope.cos[:T, None], self.rope.sin[:T, None]
        out = np.stack([first * cos - second * sin, second * cos + first * sin], axis=2)
        size = np.hypot(first, second)[:, :, None]
        return self.rounding(out, 2 * np.broadcast_to(size, out.shape)).reshape(x.shape)

    def attend(self, q_TC: F64, k_TC: F64, v_TC: F64, scale: float, window: int | None) -> F64:
        T, C = q_TC.shape
        age = np.arange(T)[:, None] - np.arange(T)[None, :]
        is_seen = (age >= 0) & (age < (window or T))
        score = self.rounding(q_TC @ k_TC.T * scale, (np.sqrt(C) + 2) * scale * (np.abs(q_TC) @ np.abs(k_TC).T))
        score = np.where(is_seen, score, -np.inf)
        below = np.where(is_seen, score.max(axis=1, keepdims=True) - score, np.inf)
        weight = np.exp(-below)
        weight = self.rounding(weight, (EXP_ROUNDINGS + np.where(is_seen, below, 0)) * weight)
        weight = weight / weight.sum(axis=1, keepdims=True)
        return self.rounding(weight @ v_TC, 2 * np.sqrt(T) * (weight @ np.abs(v_TC)))


def _embed(tokens: NDArray[np.int64], weight: F32, first_row: int) -> F64:
    rows = tokens - first_row
    is_held = (rows >= 0) & (rows < len(weight))
    out = np.zeros((len(tokens), weight.shape[1]))
    out[is_held] = weight[rows[is_held]]
    return out

"""Layers that know how their weights are cut. Calling one appends its ops to a Program and registers its WeightSpec.

Shape legend: T = tokens, K = input features, N = output features, V = vocabulary, D = hidden size;
X_r, W_r, b_r = the part that tensor rank r of p holds, by contiguous ranges of units (`units.deal`).
"""

from __future__ import annotations

from dataclasses import dataclass

from tinycluster.kernels.program import (
    AddFixed,
    AllGather,
    AllReduce,
    Attention,
    Buffer,
    DType,
    Embedding,
    GatherRows,
    KVShape,
    Linear,
    LinearFixed,
    Op,
    Program,
    Recv,
    RmsNorm,
    Rope,
    Rows,
    Send,
    SwiGlu,
    WriteKV,
)
from tinycluster.parallel.units import VOCAB_UNIT, Shares, Split, WeightSpec

FIXED_INTEGER_BITS = 31
"""A signed 64-bit fixed-point number with 32 fractional bits holds magnitudes below 2³¹."""


def partial_limit(num_units: int) -> float:
    """The bound on one unit's partial: the largest power of two with limit * 2 * num_units <= 2³¹.

    The factor 2 is the margin: the sum over all units of all ranks stays one bit away from the sign.
    """
    return float(2 ** (FIXED_INTEGER_BITS - (2 * num_units - 1).bit_length()))


class ProgramBuilder:
    """Collects one rank's Program and its table of weights. Buffers are declared at first use and reused by name.

    An op never writes the buffer that it reads from, except Rope, AddFixed and AllReduce, which are in place.
    """

    def __init__(self, shares: Shares, *, num_layers: int, head_dim: int) -> None:
        self.shares = shares
        self.head_dim = head_dim
        self._program = Program(kv=KVShape(num_layers, len(shares.kv_heads), head_dim))
        self._specs: dict[str, WeightSpec] = {}

    def emit(self, op: Op) -> None:
        self._program.ops.append(op)

    def buffer(self, name: str, width: int, rows: Rows = "tokens", dtype: DType = "float32") -> str:
        declared = self._program.buffers.setdefault(name, Buffer(width, rows, dtype))
        assert declared == Buffer(width, rows, dtype), f"buffer {name} is {declared}"
        return name

    def weight(self, spec: WeightSpec) -> str:
        """Register a weight; a tied head registers the embedding's spec once more."""
        known = self._specs.setdefault(spec.name, spec)
        assert known == spec, f"{spec.name} is cut in two ways"
        return spec.name

    def like(self, name: str, source: str) -> str:
        """A buffer of the same width and rows as another one."""
        buffer = self._program.buffers[source]
        return self.buffer(name, buffer.width, buffer.rows)

    def rms_norm(self, x: str, weight: str, eps: float, *, out: str, dim: int | None = None) -> None:
        """Over the whole row, or over every `dim` consecutive columns (one head); the weight is on every rank."""
        dim = dim or self._program.buffers[x].width
        self.emit(RmsNorm(x, self.weight(WeightSpec(weight, (dim,))), eps, dim, self.like(out, x)))

    def rope(self, x: str) -> None:
        self.emit(Rope(x, self.head_dim))

    def attention(self, q: str, k: str, v: str, *, layer: int, window: int | None, out: str) -> None:
        """Store k and v, then attend with this rank's query heads; `layer` counts from the stage's first layer."""
        self.emit(WriteKV(k, v, layer))
        kv_head_of_head = self.shares.kv_head_of_head
        scale = self.head_dim**-0.5
        self.emit(Attention(q, layer, self.head_dim, kv_head_of_head, scale, window, self.like(out, q)))

    def swiglu(self, gate: str, up: str, *, out: str) -> None:
        self.emit(SwiGlu(gate, up, self.like(out, gate)))

    def gather_rows(self, x: str, *, out: str) -> None:
        self.emit(GatherRows(x, self.buffer(out, self._program.buffers[x].width, "outputs")))

    def all_reduce(self, x: str) -> None:
        if self.shares.size > 1:
            self.emit(AllReduce(x))

    def recv(self, out: str, width: int) -> None:
        self.emit(Recv(self.buffer(out, width)))

    def send(self, x: str) -> None:
        self.emit(Send(x))

    def finish(self, output: str | None = None) -> tuple[Program, tuple[WeightSpec, ...]]:
        """The Program, `output` naming its logits, and the weights in the order of their first use."""
        self._program.output = output
        return self._program, tuple(self._specs.values())


@dataclass(frozen=True)
class ColumnParallelLinear:
    """Y = X Wᵀ + b with the rows of W cut; nothing is exchanged (Shoeybi et al. 2019, sec. 3).

        Y = [X W_0ᵀ + b_0 | X W_1ᵀ + b_1 | ... ]

    | tensor      | shape  | on rank r                         |
    |-------------|--------|-----------------------------------|
    | name.weight | (N, K) | the rows of its units of `split`  |
    | name.bias   | (N,)   | the same rows                     |
    | X           | (T, K) | whole                             |
    | Y           | (T, N) | the columns of its units          |
    """

    name: str
    in_features: int
    split: Split
    bias: bool = False

    def __call__(self, b: ProgramBuilder, x: str, *, out: str) -> None:
        N = self.split.size
        weight = b.weight(WeightSpec(f"{self.name}.weight", (N, self.in_features), 0, self.split))
        bias = b.weight(WeightSpec(f"{self.name}.bias", (N,), 0, self.split)) if self.bias else None
        b.emit(Linear(x, weight, b.buffer(out, b.shares.width(self.split)), bias))


@dataclass(frozen=True)
class RowParallelLinear:
    """Z += X Wᵀ + b with the columns of W cut; the ranks' sums are added as integers.

        Z += float32(Σ_r fixed(X_r W_rᵀ)) + b,   fixed(X_r W_rᵀ) = Σ over the rank's units u of fixed(X_u W_uᵀ)

    The bias is on every rank and added after the sum: inside it, p ranks would count it p times.

    | tensor      | shape  | on rank r                           |
    |-------------|--------|-------------------------------------|
    | name.weight | (N, K) | the columns of its units of `split` |
    | name.bias   | (N,)   | whole                               |
    | X           | (T, K) | the columns of its units            |
    | Z           | (T, N) | whole, same bits on every rank      |
    """

    name: str
    split: Split
    out_features: int
    bias: bool = False

    def __call__(self, b: ProgramBuilder, x: str, *, residual: str) -> None:
        N = self.out_features
        weight = b.weight(WeightSpec(f"{self.name}.weight", (N, self.split.size), 1, self.split))
        bias = b.weight(WeightSpec(f"{self.name}.bias", (N,))) if self.bias else None
        fixed = b.buffer("fixed", N, dtype="int64")
        b.emit(LinearFixed(x, weight, fixed, unit=self.split.unit, limit=partial_limit(self.split.num_units)))
        b.all_reduce(fixed)
        b.emit(AddFixed(residual, fixed, bias))


def vocab_split(vocab_size: int) -> Split:
    return Split("vocab", vocab_size, VOCAB_UNIT)


@dataclass(frozen=True)
class VocabParallelEmbedding:
    """H[t] = W[token[t]] with the rows of W cut: the rank that holds the row gives it, the others give zeros.

    | tensor | shape  | on rank r                       |
    |--------|--------|---------------------------------|
    | weight | (V, D) | the rows of its units of tokens |
    | H      | (T, D) | whole after the float32 sum     |
    """

    weight: str
    vocab_size: int
    hidden_size: int

    def __call__(self, b: ProgramBuilder, *, out: str) -> None:
        split = vocab_split(self.vocab_size)
        weight = b.weight(WeightSpec(self.weight, (self.vocab_size, self.hidden_size), 0, split))
        first_row = split.columns(b.shares.units(split)).start
        b.emit(Embedding(weight, first_row, b.buffer(out, self.hidden_size)))
        b.all_reduce(out)


@dataclass(frozen=True)
class VocabParallelHead:
    """L = H Wᵀ with the rows of W cut; the ranks' logits are laid side by side in vocabulary order.

    | tensor | shape  | on rank r                                         |
    |--------|--------|---------------------------------------------------|
    | weight | (V, D) | the rows of its units of tokens (tied: the same)  |
    | H      | (O, D) | whole                                             |
    | L      | (O, V) | its columns, then whole after the gather          |
    """

    weight: str
    vocab_size: int
    hidden_size: int

    def __call__(self, b: ProgramBuilder, x: str, *, out: str) -> None:
        split = vocab_split(self.vocab_size)
        weight = b.weight(WeightSpec(self.weight, (self.vocab_size, self.hidden_size), 0, split))
        if b.shares.size == 1:
            b.emit(Linear(x, weight, b.buffer(out, self.vocab_size, "outputs")))
            return
        widths = tuple(b.shares.width(split, rank) for rank in range(b.shares.size))
        part = b.buffer(f"{out}_part", widths[b.shares.rank], "outputs")
        b.emit(Linear(x, weight, part))
        b.emit(AllGather(part, widths, b.buffer(out, self.vocab_size, "outputs")))

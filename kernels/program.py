"""One stage of a model as a flat list of ops over named buffers.

Model files build a Program; the executors in `reference.py` and `executor.py` run it. A buffer is a matrix with one
row per token of the step (or per output row of the step) and a width that is local to the rank.

    T   tokens in the step, all requests packed one after the other
    O   output rows: the tokens whose logits are wanted
    R   requests in the step
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

Rows = Literal["tokens", "outputs"]
CodeBits = Literal[8, 16]
DType = Literal["float32", "int64", "codes8", "codes16"]


@dataclass(frozen=True)
class Buffer:
    """A (rows, width) matrix. int64 buffers hold fixed-point numbers with 32 fractional bits.

    A buffer of codes holds activations rounded to integers in groups of 32 columns, as q8 and q4 weights take them.
    """

    width: int
    rows: Rows = "tokens"
    dtype: DType = "float32"

    @property
    def code_bits(self) -> CodeBits | None:
        """None for numbers that are no codes."""
        return 8 if self.dtype == "codes8" else 16 if self.dtype == "codes16" else None


@dataclass(frozen=True)
class Embedding:
    """out[t] = weight[token[t]], or zeros where this rank does not hold the token's row."""

    weight: str
    first_row: int
    out: str


@dataclass(frozen=True)
class RmsNorm:
    """out = x / sqrt(mean(x²) + eps) * weight over every `dim` consecutive columns (Zhang & Sennrich 2019)."""

    x: str
    weight: str
    eps: float
    dim: int
    out: str


@dataclass(frozen=True)
class Linear:
    """out = x @ weight.T + bias. Column-parallel: every output element is one scalar chain over k."""

    x: str
    weight: str
    out: str
    bias: str | None = None
    bits: CodeBits = 16
    """How finely a q8 or q4 weight sees x."""


@dataclass(frozen=True)
class LinearFixed:
    """out = x @ weight.T as int64. Row-parallel: one chain per unit of k, units added as fixed-point integers."""

    x: str
    weight: str
    out: str
    unit: int
    """Columns of one chain; the last chain may be short."""
    limit: float
    """A unit's partial must be smaller than this in magnitude, so that the sum of all units cannot wrap."""
    bits: CodeBits = 16


@dataclass(frozen=True)
class AddFixed:
    """x += float32(fixed) + bias, in place: the residual after a row-parallel layer."""

    x: str
    fixed: str
    bias: str | None = None


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding on heads of `head_dim`, in place, halves convention (Su et al. 2021)."""

    x: str
    head_dim: int


@dataclass(frozen=True)
class WriteKV:
    """Store this step's keys and values of one layer in the paged cache."""

    k: str
    v: str
    layer: int


@dataclass(frozen=True)
class Attention:
    """Causal grouped-query attention over the paged cache (Ainslie et al. 2023; online softmax, Milakov 2018).

    `kv_head_of_head` maps this rank's query heads to this rank's KV heads. `window` is the number of positions a
    query sees, itself included; None sees all.
    """

    q: str
    layer: int
    head_dim: int
    kv_head_of_head: tuple[int, ...]
    scale: float
    window: int | None
    out: str


@dataclass(frozen=True)
class SwiGlu:
    """out = gate * sigmoid(gate) * up (Shazeer 2020)."""

    gate: str
    up: str
    out: str


@dataclass(frozen=True)
class GatherRows:
    """out = the rows of x whose logits are wanted."""

    x: str
    out: str


@dataclass(frozen=True)
class AllReduce:
    """Sum a buffer over the tensor ranks, in place. float32 buffers have one non-zero contribution per element."""

    x: str


@dataclass(frozen=True)
class AllGather:
    """out = the tensor ranks' columns side by side, in rank order; `widths` are the ranks' widths."""

    x: str
    widths: tuple[int, ...]
    out: str


@dataclass(frozen=True)
class Send:
    """Send a buffer to the next pipeline stage."""

    x: str


@dataclass(frozen=True)
class Recv:
    """Receive a buffer from the previous pipeline stage."""

    out: str


@dataclass(frozen=True)
class Quantize:
    """out = x as integer codes, in the groups of `weight`."""

    x: str
    weight: str
    out: str


@dataclass(frozen=True)
class Products:
    """Several products of one input, whose tiles are dealt to the threads together."""

    parts: tuple[Linear, ...]


@dataclass(frozen=True)
class GateUp:
    """out = swiglu(x @ gate.T, x @ up.T), as codes if `out` is a buffer of codes. gate.out and up.out stay unused."""

    gate: Linear
    up: Linear
    out: str


@dataclass(frozen=True)
class LinearResidual:
    """LinearFixed and AddFixed in one: x's product is added to `residual`."""

    product: LinearFixed
    residual: str
    bias: str | None = None


@dataclass(frozen=True)
class RowGroup:
    """Ops of which each row depends on the same row alone: they run together, a few rows at a time."""

    ops: tuple[Op, ...]
    are_dealt: bool = False
    """Each tensor rank computes its share of the rows only, unless they are too few to share."""


@dataclass(frozen=True)
class ReduceScatter:
    """Sum an int64 buffer over the tensor ranks, each rank the rows that are dealt to it (Korthikanti et al. 2022)."""

    x: str


@dataclass(frozen=True)
class GatherDealt:
    """Give the rows that the tensor ranks dealt among themselves to all of them, in place."""

    x: str


@dataclass(frozen=True)
class TokenBlocks:
    """Ops that run one block of tokens after the other, so that what they hand each other stays in the cache."""

    ops: tuple[Op, ...]


Op = (
    Embedding
    | RmsNorm
    | Linear
    | LinearFixed
    | AddFixed
    | Rope
    | WriteKV
    | Attention
    | SwiGlu
    | GatherRows
    | AllReduce
    | AllGather
    | Send
    | Recv
    | Quantize
    | Products
    | GateUp
    | LinearResidual
    | RowGroup
    | ReduceScatter
    | GatherDealt
    | TokenBlocks
)


@dataclass(frozen=True)
class KVShape:
    """Heads and sizes of one rank's paged cache: keys and values are (block, head, ...) per layer."""

    num_layers: int
    num_heads: int
    head_dim: int


@dataclass
class Program:
    """What one rank of one stage computes in a step. `output` names the logits buffer of the last stage."""

    ops: list[Op] = field(default_factory=list)
    buffers: dict[str, Buffer] = field(default_factory=dict)
    kv: KVShape = KVShape(0, 0, 0)
    output: str | None = None


@dataclass(frozen=True)
class Batch:
    """One step's tokens, packed. Request r owns rows row_start[r] .. row_start[r + 1] of T.

    tokens (T,), positions (T,), row_start (R + 1,), block_tables (R, most blocks of any request; unused entries 0),
    output_rows (O,) ascending. All int32.
    """

    tokens: I32
    positions: I32
    row_start: I32
    block_tables: I32
    output_rows: I32
    wants_all_logits: bool = True
    """Every tensor rank needs the logits of all output rows, and not only of those that `sampled_rows` deals to it."""

    @property
    def num_tokens(self) -> int:
        return int(self.tokens.shape[0])


def sampled_rows(num_rows: int, rank: int, num_ranks: int) -> slice:
    """The output rows for which one of the tensor ranks chooses the next token."""
    return slice(num_rows * rank // num_ranks, num_rows * (rank + 1) // num_ranks)


class Collectives(Protocol):
    """What an executor needs of the ranks around it; `tinycluster.parallel` implements it."""

    def all_reduce(self, x: F32 | I64) -> None: ...
    def all_gather_columns(self, x: F32, widths: Sequence[int]) -> F32: ...
    def send_next(self, x: F32) -> None: ...
    def recv_previous(self, out: F32) -> None: ...

    # PyCapsules of cpu/collective_table.h for native plans; a link comes with its peer's rank.
    @property
    def tensor_table(self) -> object: ...
    @property
    def previous_table(self) -> tuple[object, int] | None: ...
    @property
    def next_table(self) -> tuple[object, int] | None: ...


class NumericalError(ArithmeticError):
    """A partial sum was infinite, not a number, or too large for the fixed-point format."""


class CollectiveError(RuntimeError):
    """A peer did not arrive before the deadline, left, or sent something that is not ours."""

"""What is asked and what is decided: sampling parameters, requests, step plans and results. No behaviour, no I/O.

What is made for every token is a named tuple: a frozen dataclass takes four times as long to make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen, with the names and defaults of OpenAI's API and vLLM.

    temperature 0 is greedy. top_k 0 and top_p 1 and min_p 0 are off. `seed` None draws one per request.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    return_logits_digest: bool = False


class Row(NamedTuple):
    """One request's part of a step: tokens num_computed .. num_computed + num_tokens of the request.

    `tokens` are the ids to compute, starting at `position`. A last entry of PENDING stands for the token that the
    previous step sampled for this request and that the driver has not seen yet: the ranks know it.
    `blocks` is the request's whole block table. `sample` says that logits of the last token are wanted.
    """

    request_id: int
    tokens: tuple[int, ...]
    position: int
    blocks: tuple[int, ...]
    sample: bool
    sampling: SamplingParams
    seed: int
    """The resolved seed; randomness is keyed by (seed, position of the sampled token in the request)."""


PENDING = -1


@dataclass(frozen=True)
class StepPlan:
    """What every rank computes in one step. Rows are in scheduling order; the mesh must not change the result."""

    step_id: int
    rows: tuple[Row, ...]

    @property
    def num_tokens(self) -> int:
        return sum(len(row.tokens) for row in self.rows)


class SampledToken(NamedTuple):
    """`logits` holds the float32 logits of the whole vocabulary (little-endian bytes) where a digest was asked for."""

    request_id: int
    token: int
    logits: bytes | None = None


@dataclass(frozen=True)
class StepResult:
    """The tokens of a step, one per row with `sample`, in row order."""

    step_id: int
    samples: tuple[SampledToken, ...]


class RequestOutput(NamedTuple):
    """What a step gave one request. `token_ids` include the end-of-sequence or stop token that ended it, if any.

    `stop_reason` is the token of `stop_token_ids` that ended the request; None for the model's own end-of-sequence
    token. `logits` has one entry per token where a digest was asked for.
    """

    request_id: int
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None
    logits: tuple[bytes, ...] = ()

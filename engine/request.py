"""What is asked and what is decided: sampling parameters, requests, step plans and results. No behaviour, no I/O.

What is made for every token is a named tuple: a frozen dataclass takes four times as long to make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

FinishReason = Literal["stop", "length", "abort", "error", "content_filter"]
"""The last one is said by serve/screened.py only."""
NO_TOKEN = -2
"""Sampled where the rules of a request leave no token: the request ends there with "stop"."""


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen, with the names and defaults of OpenAI's API and vLLM.

    temperature 0 is greedy. top_k 0 and top_p 1 and min_p 0 are off. `seed` None draws one per request.
    Presence and frequency penalties look at generated tokens, the repetition penalty at the prompt's too.
    `bad_words` are sequences of tokens of which the last is never sampled after the others. `logprobs` is the number of
    most likely tokens to report with each generated one, `prompt_logprobs` with each of the prompt's; None is off.
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
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token, what is added to its logit), tokens ascending."""
    min_tokens: int = 0
    """Before that many are generated, neither the model's end tokens nor `stop_token_ids` are sampled."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True

    @property
    def needs_history(self) -> bool:
        """Whether a row's logits depend on which tokens stand before it."""
        penalties = (self.presence_penalty, self.frequency_penalty, self.repetition_penalty)
        return penalties != (0.0, 0.0, 1.0) or bool(self.bad_words)


class Constraint(Protocol):
    """Which tokens one request may sample next; it follows the request's generated tokens, one at a time."""

    def mask(self) -> bytes:
        """A bit per token of the vocabulary, ceil(vocab_size / 8) bytes: bit t % 8 of byte t // 8 allows token t."""
        ...

    def accept(self, token_id: int) -> None:
        """The next generated token, which the mask allowed."""
        ...


class Grammar(Protocol):
    """A compiled constraint; every generation starts one of its own."""

    def start(self) -> Constraint: ...


@dataclass(frozen=True)
class RequestOptions:
    """How a request stands among others.

    A lower priority goes first. `client` shares the engine fairly with other clients; `cache_salt` divides the prefix
    cache: requests with different salts never share blocks. `timeout_s` counts from the submission.
    `report_progress` asks for an output after every step of the prompt. `session_id` names the conversation that the
    request is a turn of: what is computed for it is kept by preference, for the next turn.
    """

    priority: int = 0
    client: str = ""
    cache_salt: str = ""
    timeout_s: float | None = None
    grammar: Grammar | None = None
    report_progress: bool = False
    session_id: str = ""


class Row(NamedTuple):
    """One request's part of a step: tokens num_computed .. num_computed + num_tokens of the request.

    `tokens` are the ids to compute, starting at `position`. A last entry of PENDING stands for the token that the
    previous step sampled for this request and that the driver has not seen yet: the ranks know it.
    `blocks` is the request's whole block table. A token is sampled after each of the last `num_samples` tokens: more
    than one where all but the first of them are drafts, to be verified.
    """

    request_id: int
    tokens: tuple[int, ...]
    position: int
    blocks: tuple[int, ...]
    num_samples: int
    sampling: SamplingParams
    seed: int
    """The resolved seed; randomness is keyed by (seed, position of the sampled token in the request)."""
    num_prompt_tokens: int = 0
    history: tuple[int, ...] | None = None
    """The tokens before `position`, on the first row after a request has got blocks, if `sampling.needs_history`."""
    mask: bytes | None = None
    """As Constraint.mask, for a request with a grammar; its rows sample one token at most."""
    next_token: int | None = None
    """The prompt's token after the row's last one, if there is one, where `sampling.prompt_logprobs` asks for it."""


PENDING = -1


@dataclass(frozen=True)
class StepPlan:
    """What every rank computes in one step. Rows are in scheduling order; the mesh must not change the result.

    `copies` are pairs of blocks: before the step, the second becomes a copy of the first in every layer. `ended` are
    requests that no later plan names, or names only with their history.
    """

    step_id: int
    rows: tuple[Row, ...]
    copies: tuple[tuple[int, int], ...] = ()
    ended: tuple[int, ...] = ()

    @property
    def num_tokens(self) -> int:
        return sum(len(row.tokens) for row in self.rows)


class TokenLogprobs(NamedTuple):
    """Natural logarithms of the softmax of the model's own logits, before any rule or temperature.

    `rank` is the token's place among all, from 1. `top` are (token, logprob) of the most likely, best first; of equal
    ones the lower id first.
    """

    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


class SampledToken(NamedTuple):
    """`logits` holds the float32 logits of the whole vocabulary (little-endian bytes) where a digest was asked for."""

    request_id: int
    token: int
    logits: bytes | None = None
    logprobs: TokenLogprobs | None = None


class PromptLogprobs(NamedTuple):
    """Of the prompt's tokens `first` .. `first + len(tokens)`, each given those before it."""

    request_id: int
    first: int
    tokens: tuple[TokenLogprobs, ...]


@dataclass(frozen=True)
class StepResult:
    """The tokens of a step, `num_samples` per row, in row order."""

    step_id: int
    samples: tuple[SampledToken, ...]
    prompt_logprobs: tuple[PromptLogprobs, ...] = ()


class PromptProgress(NamedTuple):
    """How much of a prompt is computed; `num_cached` of its tokens were found in the prefix cache."""

    num_tokens: int
    num_cached: int
    num_computed: int


class RequestOutput(NamedTuple):
    """What a step gave one request. `token_ids` include the end-of-sequence or stop token that ended it, if any.

    `stop_reason` is the token of `stop_token_ids` that ended the request; None for the model's own end-of-sequence
    token. `logits` and `logprobs` have one entry per token where they were asked for. `prompt_logprobs` are of the
    prompt's next tokens; of its first token, which nothing precedes, there is none. `progress` comes with the first
    token, and before it where it was asked for.
    """

    request_id: int
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None
    logits: tuple[bytes, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    progress: PromptProgress | None = None

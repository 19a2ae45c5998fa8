"""The definition of a request's rules in numpy, one row of logits at a time. `Sampler` must choose the same token.

The order is vLLM's: the grammar's mask, allowed tokens, bad words, the tokens that must not end a request yet, biases,
penalties; what is left goes to kernels/sampling_reference.py, so greedy requests keep the rules too. All in float32,
one rounding per step. A forbidden token's logit is -inf, and nothing brings it back.

    V   vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tinycluster.engine.request import NO_TOKEN, SamplingParams
from tinycluster.kernels import sampling_reference
from tinycluster.kernels.program import F32, NumericalError

MOST = np.float32(1e30)
"""No penalty makes a logit larger: it stays finite when it is divided by the lowest temperature."""


@dataclass(frozen=True)
class Context:
    """What the rules of one row depend on: the request's tokens so far, its mask, and the model's end tokens."""

    tokens: Sequence[int]
    num_prompt_tokens: int
    mask: bytes | None = None
    end_tokens: Sequence[int] = ()


def next_token(logits_V: F32, sampling: SamplingParams, seed: int, context: Context) -> int:
    """One token, or NO_TOKEN where the rules leave none. NumericalError as of sampling_reference.sample."""
    if not np.isfinite(logits_V.max()):
        raise NumericalError("the largest logit is not a finite number")
    ruled_V = ruled(logits_V, sampling, context)
    if ruled_V.max() == -np.inf:
        return NO_TOKEN
    choice = (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
    return sampling_reference.sample(ruled_V, *choice, seed, len(context.tokens))


def ruled(logits_V: F32, sampling: SamplingParams, context: Context) -> F32:
    """The logits as the rules leave them (V,)."""
    out_V = logits_V.copy()
    out_V[forbidden(len(logits_V), sampling, context)] = -np.inf
    for token, bias in sampling.logit_bias:
        out_V[token] += np.float32(bias)
    return penalized(out_V, sampling, context)


def forbidden(vocab_size: int, sampling: SamplingParams, context: Context) -> list[int]:
    tokens, num_generated = list(context.tokens), len(context.tokens) - context.num_prompt_tokens
    out: list[int] = []
    if context.mask is not None:
        out += [token for token in range(vocab_size) if not context.mask[token // 8] >> token % 8 & 1]
    if sampling.allowed_token_ids is not None:
        out += [token for token in range(vocab_size) if token not in sampling.allowed_token_ids]
    out += [last for *before, last in sampling.bad_words if tokens[len(tokens) - len(before) :] == before]
    if num_generated < sampling.min_tokens:
        out += [*context.end_tokens, *sampling.stop_token_ids]
    return out


def penalized(logits_V: F32, sampling: SamplingParams, context: Context) -> F32:
    """Repetition as of Keskar et al. 2019 (section 4.1) with the sign seen to; frequency and presence as of OpenAI."""
    V, prompt = len(logits_V), context.tokens[: context.num_prompt_tokens]
    counts_V = np.bincount(np.array(context.tokens[context.num_prompt_tokens :], np.int64), minlength=V)
    seen_V = (counts_V > 0) | (np.bincount(np.array(prompt, np.int64), minlength=V) > 0)
    repetition = np.float32(sampling.repetition_penalty)
    with np.errstate(over="ignore"):
        repeated_V = np.minimum(np.where(logits_V > 0, logits_V / repetition, logits_V * repetition), MOST)
    out_V = np.where(seen_V, repeated_V, logits_V) if repetition != 1 else logits_V
    out_V = out_V - np.float32(sampling.frequency_penalty) * counts_V.astype(np.float32)
    out_V = out_V - np.float32(sampling.presence_penalty) * (counts_V > 0).astype(np.float32)
    return out_V.astype(np.float32)

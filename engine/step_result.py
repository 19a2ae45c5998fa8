"""What a rank answers to a step: the sampled tokens, and what some requests want to know besides."""

from __future__ import annotations

from collections.abc import Mapping

from tinycluster.engine.batch import SAMPLED, Outputs
from tinycluster.engine.request import PromptLogprobs, SampledToken, StepResult, TokenLogprobs
from tinycluster.kernels.program import F32, I64


def plain_result(step_id: int, outputs: Outputs, tokens_O: I64) -> StepResult:
    """Of a step in which nobody wants to know more than the tokens."""
    pairs = zip(outputs.rows, tokens_O.tolist(), strict=True)
    return StepResult(step_id, tuple([SampledToken(row.request_id, token) for row, token in pairs]))


def full_result(
    step_id: int, outputs: Outputs, tokens_O: I64, logits_OV: F32, logprobs: Mapping[int, TokenLogprobs]
) -> StepResult:
    """`logprobs` are those of the outputs that ask."""
    known = [SAMPLED] * len(outputs.rows) if outputs.prompt_tokens is None else outputs.prompt_tokens.tolist()
    samples: list[SampledToken] = []
    prompts: dict[int, list[TokenLogprobs]] = {}
    firsts: dict[int, int] = {}
    for index, (row, token) in enumerate(zip(outputs.rows, tokens_O.tolist(), strict=True)):
        if known[index] == SAMPLED:
            wants_logits = row.sampling.return_logits_digest
            logits = logits_OV[index].astype("<f4", copy=False).tobytes() if wants_logits else None
            samples.append(SampledToken(row.request_id, token, logits, logprobs.get(index)))
        else:
            firsts.setdefault(row.request_id, int(outputs.positions[index]))
            prompts.setdefault(row.request_id, []).append(logprobs[index])
    reported = tuple(PromptLogprobs(id_, firsts[id_], tuple(tokens)) for id_, tokens in prompts.items())
    return StepResult(step_id, tuple(samples), reported)

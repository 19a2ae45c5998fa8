"""What the result of a step gives its requests: tokens that are kept, drafts that are not, log-probabilities. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from tinycluster.engine.request import (
    NO_TOKEN,
    FinishReason,
    PromptLogprobs,
    PromptProgress,
    RequestOutput,
    Row,
    SampledToken,
    StepResult,
    TokenLogprobs,
)
from tinycluster.engine.scheduled_request import ScheduledRequest


@dataclass(frozen=True, slots=True)
class StepInFlight:
    """A planned step, with the rows that give their requests something, in row order."""

    step_id: int
    num_tokens: int
    num_decodes: int
    reported: tuple[tuple[ScheduledRequest, Row], ...]


def is_reported(request: ScheduledRequest, row: Row) -> bool:
    return row.num_samples > 0 or request.reports_progress or request.sampling.prompt_logprobs is not None


def outputs_of(step: StepInFlight, result: StepResult, eos_token_ids: Collection[int]) -> tuple[RequestOutput, ...]:
    """An output for every reported request that has not ended. ValueError for samples of other rows."""
    expected = [request.request_id for request, row in step.reported for _ in range(row.num_samples)]
    if [sample.request_id for sample in result.samples] != expected:
        raise ValueError(f"step {step.step_id} must sample for requests {expected}")
    samples = iter(result.samples)
    prompts = {prompt.request_id: prompt for prompt in result.prompt_logprobs}
    outputs = []
    for request, row in step.reported:
        own = tuple(next(samples) for _ in range(row.num_samples))
        if request.state != "ended":
            outputs.append(_output(request, row, own, prompts, eos_token_ids))
    return tuple(outputs)


def _output(
    request: ScheduledRequest,
    row: Row,
    samples: tuple[SampledToken, ...],
    prompts: Mapping[int, PromptLogprobs],
    eos_token_ids: Collection[int],
) -> RequestOutput:
    is_first = bool(samples) and len(request.tokens) == request.num_prompt_tokens
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None
    kept: list[SampledToken] = []
    if samples:
        request.num_pending -= 1
        for sample in _confirmed(row, samples):
            finish_reason, stop_reason = _accept(request, sample.token, eos_token_ids)
            if sample.token != NO_TOKEN:
                kept.append(sample)
            if finish_reason is not None:
                break
        _take_back(request, row, len(kept))
    return RequestOutput(
        request.request_id,
        tuple(sample.token for sample in kept),
        finish_reason,
        stop_reason,
        tuple(sample.logits for sample in kept if sample.logits is not None),
        tuple(sample.logprobs for sample in kept if sample.logprobs is not None),
        _new_prompt_logprobs(request, prompts.get(request.request_id)),
        _progress(request, row) if is_first or _is_progress(request, row) else None,
    )


def _confirmed(row: Row, samples: tuple[SampledToken, ...]) -> Iterator[SampledToken]:
    """The sampled tokens up to the first that is not the draft which the next one was computed from."""
    drafts = row.tokens[len(row.tokens) - len(samples) + 1 :]
    for index, sample in enumerate(samples):
        yield sample
        if index < len(drafts) and sample.token != drafts[index]:
            return


def _accept(
    request: ScheduledRequest, token: int, eos_token_ids: Collection[int]
) -> tuple[FinishReason | None, int | None]:
    if token == NO_TOKEN:
        return "stop", None
    request.tokens.append(token)
    if token in eos_token_ids and not request.sampling.ignore_eos:
        return "stop", None
    if token in request.sampling.stop_token_ids:
        return "stop", token
    if request.constraint is not None:
        request.constraint.accept(token)
    if len(request.tokens) >= request.max_total_tokens:
        return "length", None
    return None, None


def _take_back(request: ScheduledRequest, row: Row, num_kept: int) -> None:
    """Positions whose drafts were wrong are computed again, with the right tokens."""
    num_drafts = row.num_samples - 1
    if num_drafts <= 0:
        return
    if request.speculation is not None:
        request.speculation.judge(num_drafts, max(num_kept - 1, 0), len(request.tokens))
    # A request that was preempted since has nothing left to take back, and no step after this one.
    if request.num_drafts:
        request.num_drafts = 0
        request.num_computed -= num_drafts - max(num_kept - 1, 0)


def _new_prompt_logprobs(request: ScheduledRequest, prompt: PromptLogprobs | None) -> tuple[TokenLogprobs, ...]:
    """Those that were not given before: a preempted request computes its prompt again."""
    if prompt is None:
        return ()
    num_given = request.num_prompt_logprobs + 1 - prompt.first
    new = prompt.tokens[max(num_given, 0) :]
    request.num_prompt_logprobs += len(new)
    return new


def _progress(request: ScheduledRequest, row: Row) -> PromptProgress:
    num_cached = request.num_cached or 0
    num_computed = min(row.position + len(row.tokens), request.num_prompt_tokens)
    # A preempted request begins anew, and finds less in the cache than it had.
    return PromptProgress(request.num_prompt_tokens, num_cached, max(num_computed, num_cached))


def _is_progress(request: ScheduledRequest, row: Row) -> bool:
    return request.reports_progress and row.position < request.num_prompt_tokens

"""Step results as bytes. A sampled token is 13 bytes; what few requests ask for follows where its flag is set.

result           step_id u64, samples u32, prompt log-probabilities u32, then samples, their logits, their
                 log-probabilities, and the prompts'
sample           request_id i64, token i32, flags u8
log-probability  logprob f32, rank i32, most likely ones u8, then those: tokens i32, logprobs f32
prompt           request_id i64, first i32, tokens u32, then a log-probability for each
"""

from __future__ import annotations

import struct

from tinycluster.cluster.reader import ProtocolError, Reader, as_block
from tinycluster.engine.request import PromptLogprobs, SampledToken, StepResult, TokenLogprobs

_RESULT = struct.Struct("<QII")
_SAMPLE = struct.Struct("<qiB")
_LOGPROB = struct.Struct("<fiB")
_PROMPT = struct.Struct("<qiI")
_HAS_LOGITS, _HAS_LOGPROBS = 1, 2


def encode_result(result: StepResult) -> bytes:
    samples = result.samples
    parts = [_RESULT.pack(result.step_id, len(samples), len(result.prompt_logprobs))]
    parts += [
        _SAMPLE.pack(id_, token, _HAS_LOGITS * (logits is not None) + _HAS_LOGPROBS * (logprobs is not None))
        for id_, token, logits, logprobs in samples
    ]
    parts += [as_block(sample.logits) for sample in samples if sample.logits is not None]
    parts += [_encode_logprobs(sample.logprobs) for sample in samples if sample.logprobs is not None]
    for prompt in result.prompt_logprobs:
        parts.append(_PROMPT.pack(prompt.request_id, prompt.first, len(prompt.tokens)))
        parts += map(_encode_logprobs, prompt.tokens)
    return b"".join(parts)


def decode_result(reader: Reader) -> StepResult:
    """ProtocolError for what `encode_result` does not write."""
    step_id, num_samples, num_prompts = reader.fields(_RESULT)
    records = list(_SAMPLE.iter_unpack(reader.take(num_samples * _SAMPLE.size)))
    if any(flags for _, _, flags in records):
        samples = _decode_rare(reader, records)
    else:
        samples = tuple(SampledToken(id_, token) for id_, token, _ in records)
    return StepResult(step_id, samples, tuple(_decode_prompt(reader) for _ in range(num_prompts)))


def _decode_rare(reader: Reader, records: list[tuple[int, int, int]]) -> tuple[SampledToken, ...]:
    if any(flags & ~(_HAS_LOGITS | _HAS_LOGPROBS) for _, _, flags in records):
        raise ProtocolError("a sample has a flag that does not exist")
    logits = [reader.block() if flags & _HAS_LOGITS else None for _, _, flags in records]
    logprobs = [_decode_logprobs(reader) if flags & _HAS_LOGPROBS else None for _, _, flags in records]
    return tuple(
        SampledToken(id_, token, own_logits, own_logprobs)
        for (id_, token, _), own_logits, own_logprobs in zip(records, logits, logprobs, strict=True)
    )


def _encode_logprobs(logprobs: TokenLogprobs) -> bytes:
    num_top = len(logprobs.top)
    numbers = [number for pair in zip(*logprobs.top, strict=True) for number in pair]
    return _LOGPROB.pack(logprobs.logprob, logprobs.rank, num_top) + struct.pack(f"<{num_top}i{num_top}f", *numbers)


def _decode_logprobs(reader: Reader) -> TokenLogprobs:
    logprob, rank, num_top = reader.fields(_LOGPROB)
    tokens = reader.array("i", num_top)
    return TokenLogprobs(logprob, rank, tuple(zip(tokens, reader.array("f", num_top), strict=True)))


def _decode_prompt(reader: Reader) -> PromptLogprobs:
    request_id, first, num_tokens = reader.fields(_PROMPT)
    return PromptLogprobs(request_id, first, tuple(_decode_logprobs(reader) for _ in range(num_tokens)))

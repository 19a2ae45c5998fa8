"""`bench perplexity`: how far each weight format is from float32 arithmetic on the same weights.

The model runs alone, without scheduler or sampler, because the logits of every position are wanted.
Shape legend: W = tokens of a window, C = rows of a chunk, V = vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from tinycluster.engine.checkpoint import Checkpoint
from tinycluster.engine.errors import ConfigError
from tinycluster.engine.models.registry import build
from tinycluster.engine.models.stage import Stage
from tinycluster.engine.rope import rope_table
from tinycluster.engine.tensor_table import TensorEntry
from tinycluster.engine.weights import load_weights
from tinycluster.kernels.executor import NativeExecutor
from tinycluster.kernels.formats import DenseTensor, HostTensor, dequantize, f32_to_bf16
from tinycluster.kernels.paged_cache import KVDtype, PagedCache
from tinycluster.kernels.passes import Activations, round_activations
from tinycluster.kernels.program import F32, Batch
from tinycluster.parallel.local import LocalGroup
from tinycluster.parallel.pipeline import StageCollectives
from tinycluster.parallel.units import Shares

WeightsFormat = Literal["stored", "f32", "bf16", "f16", "q8", "q4"]
BLOCK_TOKENS = 16
# Logits of one chunk: 64 rows of a 50,000-token vocabulary are 13 MB in float32 and twice that in float64.
CHUNK_TOKENS = 64
COLLECTIVE_TIMEOUT_S = 60.0


class Executor(Protocol):
    def run(self, batch: Batch) -> F32 | None: ...


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean of `nlls`: the negative log-likelihood of each predicted token, in text order."""

    nlls: NDArray[np.float64]

    @property
    def value(self) -> float:
        return math.exp(self.nlls.mean())

    def relative_to(self, reference: Perplexity) -> tuple[float, float]:
        """How far above the reference on the same tokens, and its standard error: 0.01 is one per cent.

        The tokens are paired, so the error is that of the difference and not of either perplexity.
        """
        differences = self.nlls - reference.nlls
        ratio = math.exp(differences.mean())
        return ratio - 1, ratio * float(differences.std(ddof=1)) / math.sqrt(len(differences))


class RoundedToBf16:
    """A checkpoint with its weights rounded to bfloat16, as most models are published: the source of q4."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self.path, self.config, self.digest = checkpoint.path, checkpoint.config, checkpoint.digest
        self.tokenizer, self.default_sampling = checkpoint.tokenizer, checkpoint.default_sampling

    def tensors(self) -> Mapping[str, TensorEntry]:
        return self._checkpoint.tensors()

    def read(self, name: str, slices: tuple[range, ...]) -> HostTensor:
        return DenseTensor("bf16", f32_to_bf16(dequantize(self._checkpoint.read(name, slices))))


def load_executor(
    checkpoint: Checkpoint,
    weights: WeightsFormat,
    *,
    window: int,
    num_threads: int,
    activations: Activations = "int16",
    kv_dtype: KVDtype = "f32",
) -> NativeExecutor:
    """The whole model on one rank, with a cache for one request of `window` tokens."""
    config = checkpoint.config
    shares = Shares(0, (1.0,), config.num_attention_heads, config.num_key_value_heads)
    program, specs = build(config, Stage.whole(config), shares)
    program = round_activations(program, activations)
    source = RoundedToBf16(checkpoint) if weights == "q4" else checkpoint
    return NativeExecutor(
        program,
        load_weights(source, specs, shares, None if weights == "stored" else weights),
        rope_table(config, window),
        PagedCache(program.kv, _num_blocks(window), BLOCK_TOKENS, kv_dtype),
        StageCollectives(LocalGroup(1, timeout_s=COLLECTIVE_TIMEOUT_S).communicator(0), None, None),
        num_threads,
    )


def measure(
    executor: Executor, tokens: Sequence[int], *, window: int, on_tokens: Callable[[int], None] = lambda count: None
) -> Perplexity:
    """Perplexity over windows that do not overlap; the first token of each is given, the others are predicted.

    A last window of one token predicts nothing. ConfigError for a text or a window of fewer than two.
    """
    if window < 2:
        raise ConfigError(f"--window must be at least 2 tokens, got {window}")
    if len(tokens) < 2:
        raise ConfigError(f"the text must have at least 2 tokens, got {len(tokens)}")
    nlls: list[NDArray[np.float64]] = []
    for start in range(0, len(tokens), window):
        window_W = np.asarray(tokens[start : start + window], np.int32)
        for first, logits_CV in _logits(executor, window_W):
            # The last position of the window predicts a token of the next one.
            targets_C = window_W[first + 1 : first + 1 + len(logits_CV)]
            nlls.append(negative_log_likelihood(logits_CV[: len(targets_C)], targets_C))
        on_tokens(len(window_W))
    return Perplexity(np.concatenate(nlls))


def negative_log_likelihood(logits_CV: F32, targets_C: NDArray[np.int32]) -> NDArray[np.float64]:
    """-log softmax(logits)[target] per row, in float64."""
    x_CV = logits_CV.astype(np.float64)
    highest_C = x_CV.max(axis=1)
    log_sum_C = highest_C + np.log(np.exp(x_CV - highest_C[:, None]).sum(axis=1))
    return np.asarray(log_sum_C - x_CV[np.arange(len(targets_C)), targets_C])


def _logits(executor: Executor, window_W: NDArray[np.int32]) -> Iterator[tuple[int, F32]]:
    """The logits of every position of one request, chunk by chunk: (first position, logits_CV)."""
    blocks = np.arange(_num_blocks(len(window_W)), dtype=np.int32)[None, :]
    for first in range(0, len(window_W), CHUNK_TOKENS):
        chunk_C = window_W[first : first + CHUNK_TOKENS]
        count = len(chunk_C)
        batch = Batch(
            tokens=chunk_C,
            positions=np.arange(first, first + count, dtype=np.int32),
            row_start=np.array([0, count], np.int32),
            block_tables=blocks,
            output_rows=np.arange(count, dtype=np.int32),
        )
        logits_CV = executor.run(batch)
        assert logits_CV is not None, "the only stage is the last one"
        yield first, logits_CV


def _num_blocks(num_tokens: int) -> int:
    return -(-num_tokens // BLOCK_TOKENS)

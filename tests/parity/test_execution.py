"""The executors' float32 arithmetic against transformers' goldens: a prompt in one chunk, then token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from tests.parity.golden import POSITIONS, PROMPT, SEED, SEQUENCE, read_golden
from tests.parity.oracle import Rank, RopeTable, float32_bound
from tests.parity.random_model import CASES, random_weights
from tinycluster.engine.models.registry import Stage, build, weight_specs
from tinycluster.engine.models.spec import ModelConfig
from tinycluster.engine.rope import inverse_frequencies, rope_table
from tinycluster.kernels.executor import NativeExecutor, PagedCache, ReferenceExecutor
from tinycluster.kernels.formats import DenseTensor
from tinycluster.kernels.packing import pack
from tinycluster.kernels.program import F32, Batch, Program
from tinycluster.parallel.local import LocalGroup
from tinycluster.parallel.pipeline import StageCollectives
from tinycluster.parallel.units import Shares

BLOCK_TOKENS = 16
BLOCKS = [5, 0, 3, 6, 1]


def alone(config: ModelConfig) -> tuple[Program, StageCollectives, PagedCache]:
    shares = Shares(0, (1.0,), config.num_attention_heads, config.num_key_value_heads)
    program, _ = build(config, Stage.whole(config), shares)
    collectives = StageCollectives(LocalGroup(1).communicator(0), None, None)
    return program, collectives, PagedCache(program.kv, max(BLOCKS) + 1, BLOCK_TOKENS)


def native(config: ModelConfig) -> NativeExecutor:
    program, collectives, cache = alone(config)
    weights = random_weights(config, SEED)
    units = {spec.name: spec.split.unit if spec.split_dim == 1 else None for spec in weight_specs(config) if spec.split}
    packed = {
        name: pack(DenseTensor("f32", weight), unit=units.get(name)) if weight.ndim == 2 else weight
        for name, weight in weights.items()
    }
    return NativeExecutor(program, packed, rope_table(config, SEQUENCE), cache, collectives)


def reference(config: ModelConfig) -> ReferenceExecutor:
    program, collectives, cache = alone(config)
    weights = {
        name: DenseTensor("f32", weight) if weight.ndim == 2 else weight
        for name, weight in random_weights(config, SEED).items()
    }
    return ReferenceExecutor(program, weights, rope_table(config, SEQUENCE), cache, collectives)


def step(
    executor: NativeExecutor | ReferenceExecutor,
    tokens: Sequence[int],
    position: int,
    output_rows: Sequence[int],
    blocks: Sequence[int] = BLOCKS,
) -> F32:
    """Compute some tokens of the one request; its blocks lie in the cache in no particular order."""
    count = len(tokens)
    logits = executor.run(
        Batch(
            tokens=np.array(tokens, np.int32),
            positions=np.arange(position, position + count, dtype=np.int32),
            row_start=np.array([0, count], np.int32),
            block_tables=np.array([blocks], np.int32),
            output_rows=np.array(output_rows, np.int32),
        )
    )
    assert logits is not None
    return logits


@pytest.mark.parametrize("case", CASES)
def test_native_logits_are_those_of_transformers_up_to_float32_rounding(case: str) -> None:
    config, golden = CASES[case], read_golden(case)
    logits = step(native(config), golden.tokens.tolist(), 0, POSITIONS)
    program, *_ = alone(config)
    rope = RopeTable.of(rope_table(config, SEQUENCE), inverse_frequencies(config, SEQUENCE))
    weights = random_weights(config, SEED)
    bound = float32_bound(lambda: [[Rank(program, weights)]], golden.tokens.tolist(), rope)
    # Both sides are float32 executions, each within the bound of the exact logits.
    assert np.all(np.abs(logits.astype(np.float64) - golden.logits) <= 2 * bound[list(POSITIONS)])


@pytest.mark.parametrize("case", CASES)
def test_native_greedy_decoding_gives_the_tokens_of_transformers(case: str) -> None:
    executor, golden = native(CASES[case]), read_golden(case)
    tokens = golden.prompt
    logits = step(executor, tokens, 0, [PROMPT - 1])
    while len(tokens) < SEQUENCE:
        tokens.append(int(logits[0].argmax()))
        logits = step(executor, tokens[-1:], len(tokens) - 1, [0])
    assert tokens[PROMPT:] == golden.continuation


@pytest.mark.parametrize("case", ["llama_biases", "qwen3_biases_windows"])
def test_reference_and_native_executors_give_the_same_bits(case: str) -> None:
    tokens = read_golden(case).tokens.tolist()[:19]
    rows = range(len(tokens))
    np.testing.assert_array_equal(
        step(native(CASES[case]), tokens, 0, rows), step(reference(CASES[case]), tokens, 0, rows)
    )


@pytest.mark.parametrize("make", [native, reference])
def test_a_request_goes_on_in_a_copy_of_another_ones_block(
    make: Callable[[ModelConfig], NativeExecutor | ReferenceExecutor],
) -> None:
    tokens = read_golden("llama_biases").tokens.tolist()[:12]
    executor = make(CASES["llama_biases"])
    expected = step(executor, tokens, 0, [11]).copy()
    executor.copy_blocks([(BLOCKS[0], 2), (2, 4)])
    step(executor, tokens[::-1], 0, [11])
    np.testing.assert_array_equal(step(executor, tokens[-1:], 11, [0], [4]), expected)
    assert (step(executor, tokens[-1:], 11, [0]) != expected).any()

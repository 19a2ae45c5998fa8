"""Perplexity: against a brute-force definition on a made-up model, then the formats of the real one."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from tests.serve.command_line import Outcome, tinycluster
from tinycluster.engine.checkpoint import open_checkpoint
from tinycluster.engine.errors import ConfigError
from tinycluster.kernels.formats import dequantize
from tinycluster.kernels.paged_cache import KVDtype
from tinycluster.kernels.program import F32, Batch
from tinycluster.serve.bench.perplexity import (
    CHUNK_TOKENS,
    Perplexity,
    RoundedToBf16,
    load_executor,
    measure,
    negative_log_likelihood,
)
from tinycluster.serve.bench.perplexity_formats import parse_formats

TEXT = Path(__file__).parent / "data" / "alice.txt"
VOCAB_SIZE = 11
# Of the perplexity: bfloat16 keeps 8 bits of each number, q8 about 7 of the largest in a group, both without bias.
KV_BOUNDS: dict[KVDtype, float] = {"bf16": 0.005, "q8": 0.005}


def made_up_logits(context: list[int]) -> list[float]:
    """Logits of the next token that depend on every token of the context and on its length."""
    seed = sum((position + 1) * (token + 3) for position, token in enumerate(context))
    return [math.sin(seed * (token + 1)) * 3 for token in range(VOCAB_SIZE)]


class MadeUpModel:
    """Remembers one request's tokens by position, as a cache does, and answers with made-up logits."""

    def __init__(self) -> None:
        self.context: list[int] = []
        self.largest_step = 0

    def run(self, batch: Batch) -> F32:
        assert list(batch.row_start) == [0, batch.num_tokens]
        assert list(batch.output_rows) == list(range(batch.num_tokens))
        assert batch.block_tables.shape[1] * 16 > batch.positions[-1]
        self.largest_step = max(self.largest_step, batch.num_tokens)
        logits = []
        for token, position in zip(batch.tokens, batch.positions, strict=True):
            del self.context[position:]
            assert len(self.context) == position
            self.context.append(int(token))
            logits.append(made_up_logits(self.context))
        return np.array(logits, np.float32)


def brute_force_nlls(tokens: list[int], window: int) -> list[float]:
    nlls = []
    for start in range(0, len(tokens), window):
        piece = tokens[start : start + window]
        for end in range(1, len(piece)):
            logits = [float(np.float32(value)) for value in made_up_logits(piece[:end])]
            nlls.append(math.log(sum(map(math.exp, logits))) - logits[piece[end]])
    return nlls


def some_tokens(count: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(5).integers(0, VOCAB_SIZE, count)]


@pytest.mark.parametrize("num_tokens", [2, CHUNK_TOKENS, CHUNK_TOKENS + 1, CHUNK_TOKENS + 2, 157, 2 * CHUNK_TOKENS])
@pytest.mark.parametrize("window", [2, 31, CHUNK_TOKENS, CHUNK_TOKENS + 1, 1000])
def test_perplexity_is_that_of_the_definition_for_every_cut_into_windows_and_chunks(
    num_tokens: int, window: int
) -> None:
    tokens, model = some_tokens(num_tokens), MadeUpModel()
    measured = measure(model, tokens, window=window)
    expected = brute_force_nlls(tokens, window)
    # Both sum 11 terms in float64: a few units in the last place of values below 10.
    assert measured.nlls == pytest.approx(expected, abs=1e-13)
    assert measured.value == pytest.approx(math.exp(sum(expected) / len(expected)), rel=1e-12)
    assert model.largest_step <= CHUNK_TOKENS


def test_predicting_the_token_itself_instead_of_the_next_one_is_noticed() -> None:
    tokens = some_tokens(100)
    shifted = [float(value) for value in measure(MadeUpModel(), [*tokens[1:], tokens[0]], window=1000).nlls]
    assert shifted != pytest.approx(brute_force_nlls(tokens, 1000), abs=1e-3)


def test_a_model_that_knows_nothing_has_the_vocabulary_as_its_perplexity() -> None:
    logits = np.zeros((4, VOCAB_SIZE), np.float32)
    nlls = negative_log_likelihood(logits, np.array([0, 3, 5, 10], np.int32))
    assert Perplexity(nlls).value == pytest.approx(VOCAB_SIZE)


def test_logits_far_from_zero_neither_overflow_nor_vanish() -> None:
    logits = np.array([[1e4, 1e4 - 1], [-1e4, -1e4 - 1]], np.float32)
    expected = math.log(1 + math.exp(-1))
    assert negative_log_likelihood(logits, np.array([0, 0], np.int32)) == pytest.approx([expected, expected])


def test_the_change_is_paired_token_by_token() -> None:
    reference = Perplexity(np.array([1.0, 5.0, 3.0]))
    change, standard_error = Perplexity(reference.nlls + 0.01).relative_to(reference)
    assert change == pytest.approx(math.exp(0.01) - 1)
    assert standard_error == pytest.approx(0, abs=1e-12)
    change, standard_error = Perplexity(reference.nlls + np.array([0.03, 0.0, -0.03])).relative_to(reference)
    assert change == pytest.approx(0, abs=1e-12)
    assert standard_error == pytest.approx(0.03 / math.sqrt(3))


@pytest.mark.parametrize(("tokens", "window", "rule"), [([1], 8, "at least 2 tokens"), ([1, 2], 1, "--window must be")])
def test_a_text_or_window_that_predicts_nothing_is_a_sentence(tokens: list[int], window: int, rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        measure(MadeUpModel(), tokens, window=window)


def test_float32_is_always_measured_first_and_once() -> None:
    assert parse_formats("q8, f32,stored") == ("f32", "q8", "stored")
    with pytest.raises(ConfigError, match="got 'q5'"):
        parse_formats("q5")


def test_q4_is_made_from_weights_that_were_rounded_to_bf16(smollm2_path: Path) -> None:
    checkpoint = open_checkpoint(smollm2_path)
    name, slices = "model.layers.0.mlp.up_proj.weight", (range(3), range(64))
    rounded = dequantize(RoundedToBf16(checkpoint).read(name, slices))
    stored = dequantize(checkpoint.read(name, slices))
    assert (rounded.view(np.uint32) & 0xFFFF == 0).all()
    # Eight significant bits: half a unit in the last place is 2^-9 of the value, and a little more at a power of two.
    assert (np.abs(rounded - stored) <= np.abs(stored) * 2.0**-8).all()
    assert (rounded != stored).any()


def bench(*arguments: str) -> Outcome:
    return tinycluster("bench", "perplexity", *arguments)


@pytest.fixture(scope="module")
def config(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "model.yaml"
    path.write_text(f"models: [{{name: smollm2, source: {smollm2_path}}}]\n")
    return path


def test_the_text_has_the_tokens_that_the_comparison_needs(smollm2_path: Path) -> None:
    tokenizer = open_checkpoint(smollm2_path).tokenizer()
    assert len(tokenizer.encode(TEXT.read_text(encoding="utf-8"), add_special_tokens=True)) >= 4000


@pytest.mark.timeout(900)
def test_integer_formats_of_the_real_model_stay_close_to_float32_arithmetic(config: Path) -> None:
    outcome = bench(str(config), "--text", str(TEXT), "--weights", "stored,q8,q4", "--max-tokens", "2048", "--json")
    assert outcome.exit_code == 0, outcome.stderr
    result = json.loads(outcome.stdout)
    assert result["num_tokens"] == 2048
    # So many tokens tell a change of the narrower bound from chance.
    assert all(3 * row["standard_error"] < 0.005 for row in result["results"])
    change = {row["weights"]: row["relative_to_f32"] for row in result["results"]}
    assert change["f32"] == 0
    assert abs(change["stored"]) < 0.005
    assert abs(change["q8"]) < 0.005
    assert abs(change["q4"]) < 0.08


def test_rounded_keys_and_values_of_the_real_model_stay_close_to_float32_ones(smollm2_path: Path) -> None:
    """As stored, so that the cache alone differs; 1,024 tokens of context are four segments of attention."""
    checkpoint = open_checkpoint(smollm2_path)
    tokens = checkpoint.tokenizer().encode(TEXT.read_text(encoding="utf-8"), add_special_tokens=True)[:1024]

    def measured(dtype: KVDtype) -> Perplexity:
        executor = load_executor(checkpoint, "stored", window=1024, num_threads=2, kv_dtype=dtype)
        return measure(executor, tokens, window=1024)

    exact = measured("f32")
    for dtype, bound in KV_BOUNDS.items():
        change, standard_error = measured(dtype).relative_to(exact)
        assert 0 < abs(change) < bound
        assert 3 * standard_error < bound


def test_a_table_names_each_format_with_its_distance_from_float32(config: Path) -> None:
    outcome = bench(str(config), "--text", str(TEXT), "--weights", "stored", "--max-tokens", "20", "--window", "16")
    assert outcome.exit_code == 0, outcome.stderr
    assert "alice.txt, 20 tokens, windows of 16" in outcome.stdout
    assert "±" in outcome.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--text", "no such file"), "--text no such file: No such file or directory"),
        (("--weights", "q5"), "--weights takes"),
        (("--text", str(TEXT), "--window", "1"), "--window must be at least 2"),
        (("--text", str(TEXT), "--max-tokens", "1"), "at least 2 tokens"),
    ],
)
def test_a_users_mistake_is_one_sentence_and_exit_code_two(
    config: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    outcome = bench(str(config), *arguments)
    assert outcome.exit_code == 2
    assert sentence in outcome.stderr
    assert outcome.stderr.count("\n") == 1

"""The same tokens and the same logits, bit for bit, however the work is cut. Ranks are threads here."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.engines import GREEDY, SAMPLED, Answer, answer_all, answers, engine_for, prompt_of, read
from tests.parity.random_model import CASES, write_folder
from tinycluster.engine import scheduler
from tinycluster.engine.block_tables import BlockTables
from tinycluster.engine.request import SamplingParams
from tinycluster.parallel.layers import ProgramBuilder

PROMPTS = [prompt_of(1), prompt_of(37, first=5), prompt_of(64, first=11)]


@pytest.fixture(scope="module")
def expected(tiny_model: Path) -> list[list[Answer]]:
    """Greedy and sampled answers of one rank, one request after the other."""
    with_one_rank = [
        [answers(tiny_model, [prompt], sampling)[0] for prompt in PROMPTS] for sampling in (GREEDY, SAMPLED)
    ]
    assert with_one_rank[0] != with_one_rank[1]
    return with_one_rank


@pytest.mark.parametrize("pipeline", [1, 2, 3])
@pytest.mark.parametrize("tensor", [1, 2, 3, 4, 5])
def test_every_mesh_gives_the_same_tokens_and_logits(
    tiny_model: Path, expected: list[list[Answer]], tensor: int, pipeline: int
) -> None:
    engine = engine_for(tiny_model, mesh={"tensor": tensor, "pipeline": pipeline})
    try:
        assert [answer_all(engine, PROMPTS, sampling) for sampling in (GREEDY, SAMPLED)] == expected
    finally:
        engine.close()


def test_uneven_shares_and_given_layers_give_the_same(tiny_model: Path, expected: list[list[Answer]]) -> None:
    mesh = {"tensor": 3, "weights": [1, 4, 2], "pipeline": 3, "layers": [0, 2, 1]}
    assert answers(tiny_model, PROMPTS, GREEDY, mesh=mesh) == expected[0]


def test_a_lost_addend_is_noticed(
    tiny_model: Path, expected: list[list[Answer]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ProgramBuilder, "all_reduce", lambda self, x: None)
    assert answers(tiny_model, PROMPTS, GREEDY, mesh={"tensor": 2}) != expected[0]


@pytest.mark.parametrize("mesh", [{"tensor": 2}, {"pipeline": 2}])
def test_a_batch_of_17_gives_what_each_request_gives_alone(tiny_model: Path, mesh: dict[str, int]) -> None:
    prompts = [prompt_of(3 * index + 1, first=index) for index in range(17)]
    alone = [answers(tiny_model, [prompt], SAMPLED)[0] for prompt in prompts[::4]]
    assert answers(tiny_model, prompts, SAMPLED, mesh=mesh)[::4] == alone


@pytest.mark.parametrize("step_tokens", [1, 7, 64])
def test_a_prompt_in_chunks_gives_the_same(tiny_model: Path, expected: list[list[Answer]], step_tokens: int) -> None:
    limits = {"max_model_len": 128, "step_tokens": step_tokens}
    assert answers(tiny_model, PROMPTS, SAMPLED, limits=limits, mesh={"tensor": 2}) == expected[1]


@pytest.mark.parametrize("pipeline", [1, 2])
def test_preempted_requests_give_the_same(tiny_model: Path, pipeline: int) -> None:
    prompts, sampling = [prompt_of(10, first=index) for index in range(6)], replace(SAMPLED, max_tokens=40)
    limits, mesh = {"max_model_len": 64}, {"pipeline": pipeline}
    roomy = answers(tiny_model, prompts, sampling, limits=limits)
    engine = engine_for(tiny_model, limits=limits, mesh=mesh, kv_cache={"memory": "75KiB"})
    try:
        assert answer_all(engine, prompts, sampling) == roomy
        assert engine.num_preemptions > 0
    finally:
        engine.close()


@pytest.mark.parametrize("block_tokens", [32, 256])
def test_the_size_of_blocks_does_not_matter(tiny_model: Path, expected: list[list[Answer]], block_tokens: int) -> None:
    kv_cache = {"memory": "4MiB", "block_tokens": block_tokens}
    assert answers(tiny_model, PROMPTS, GREEDY, kv_cache=kv_cache) == expected[0]


@pytest.mark.parametrize("weights", ["f32", "bf16", "f16", "q8", "q4"])
@pytest.mark.parametrize("case", ["qwen2_untied", "qwen3_tied"])
def test_every_format_is_exact_on_every_mesh(tmp_path: Path, case: str, weights: str) -> None:
    folder = write_folder(tmp_path, CASES[case], seed=9)
    alone = answers(folder, PROMPTS, SAMPLED, weights=weights)
    assert answers(folder, PROMPTS, SAMPLED, weights=weights, mesh={"tensor": 3, "pipeline": 2}) == alone


@pytest.mark.parametrize("dtype", ["bf16", "q8"])
def test_rounded_keys_and_values_are_exact_on_every_mesh_and_round(tmp_path: Path, dtype: str) -> None:
    folder = write_folder(tmp_path, CASES["qwen3_tied"], seed=9)
    kv_cache = {"memory": "4MiB", "dtype": dtype}
    alone = answers(folder, PROMPTS, SAMPLED, kv_cache=kv_cache)
    mesh, limits = {"tensor": 3, "pipeline": 2}, {"max_model_len": 128, "step_tokens": 7}
    assert answers(folder, PROMPTS, SAMPLED, kv_cache=kv_cache, mesh=mesh) == alone
    assert answers(folder, PROMPTS, SAMPLED, kv_cache=kv_cache, limits=limits, threads=3) == alone
    assert answers(folder, PROMPTS, SAMPLED, kv_cache={"memory": "4MiB", "dtype": "f32"}) != alone


@pytest.mark.parametrize("activations", ["mixed", "int8"])
def test_8_bit_activations_are_exact_too_and_round_more(tmp_path: Path, activations: str) -> None:
    folder = write_folder(tmp_path, CASES["qwen3_tied"], seed=9)
    alone = answers(folder, PROMPTS, SAMPLED, weights="q8", activations=activations)
    mesh = {"tensor": 3, "pipeline": 2}
    assert answers(folder, PROMPTS, SAMPLED, weights="q8", activations=activations, mesh=mesh) == alone
    assert answers(folder, PROMPTS, SAMPLED, weights="q8", activations="int16") != alone


@pytest.mark.parametrize("mesh", [{"tensor": 2}, {"pipeline": 2}, {"tensor": 3, "pipeline": 2}])
def test_what_the_prefix_cache_knows_changes_no_bit(
    tiny_model: Path, expected: list[list[Answer]], mesh: dict[str, int]
) -> None:
    with closing(engine_for(tiny_model, mesh=mesh)) as engine:
        for _ in range(2):
            assert [answer_all(engine, PROMPTS, sampling) for sampling in (GREEDY, SAMPLED)] == expected
        # 32 tokens of the second prompt and 48 of the third; the first is too short.
        assert engine.statistics.num_prefix_hits == 3 * (32 + 48)
    kv_cache = {"memory": "4MiB", "prefix_cache": False}
    with closing(engine_for(tiny_model, mesh=mesh, kv_cache=kv_cache)) as engine:
        for _ in range(2):
            assert answer_all(engine, PROMPTS, GREEDY) == expected[0]
        assert engine.statistics.num_prefix_hits == 0


@pytest.mark.parametrize("mesh", [{}, {"tensor": 2}, {"pipeline": 2}])
@pytest.mark.parametrize("length", [1, 15, 16, 17, 33, 48])
def test_choices_of_one_prompt_give_what_each_gives_alone(tiny_model: Path, mesh: dict[str, int], length: int) -> None:
    prompt, choices = prompt_of(length), [replace(SAMPLED, seed=seed) for seed in range(4)]
    alone = [answers(tiny_model, [prompt], sampling)[0] for sampling in choices]
    with closing(engine_for(tiny_model, mesh=mesh)) as engine:
        assert [read(generation) for generation in engine.submit_choices(prompt, choices)] == alone


@pytest.mark.parametrize("block_tokens", [16, 64])
def test_blocks_that_a_window_gives_back_are_used_by_others_and_change_no_bit(
    tmp_path: Path, block_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CASES["mistral_window"], max_position_embeddings=512)
    folder = write_folder(tmp_path, config, seed=9)
    prompts = [prompt_of(150 + 7 * index, first=index) for index in range(4)]
    longer, limits = replace(SAMPLED, max_tokens=120), {"max_model_len": 300}
    # Too few blocks for all four texts, unless windows give back what they have passed.
    kv_cache = {"memory": "240KiB", "block_tokens": block_tokens, "prefix_cache": False}
    with closing(engine_for(folder, limits=limits, kv_cache=kv_cache)) as engine:
        dropping = answer_all(engine, prompts, longer)
        num_preemptions = engine.num_preemptions
    monkeypatch.setattr(BlockTables, "drop_unreached", lambda self, request: None)
    with closing(engine_for(folder, limits=limits, kv_cache=kv_cache)) as engine:
        assert answer_all(engine, prompts, longer) == dropping
        assert engine.num_preemptions > num_preemptions == 0


@pytest.mark.parametrize("mesh", [{}, {"tensor": 2}, {"pipeline": 2}])
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
def test_verified_drafts_give_the_same_tokens_and_logits(
    tiny_model: Path, mesh: dict[str, int], sampling: SamplingParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the steps take here: as many drafts as there are."""
    monkeypatch.setattr(scheduler, "best_num_drafts", lambda acceptance, most, times, num_rows: most)
    longer = replace(sampling, max_tokens=48)
    prompts = [prompt_of(9) * 3, prompt_of(40), [5] * 20]
    plain = answers(tiny_model, prompts, longer, mesh=mesh)
    with closing(engine_for(tiny_model, mesh=mesh, speculation="ngram")) as engine:
        assert answer_all(engine, prompts, longer) == plain
        assert engine.statistics.drafts.num_draft_tokens > 0


def test_the_real_model_is_exact(smollm2_path: Path) -> None:
    def run(**changes: Any) -> list[Answer]:
        return answers(
            smollm2_path, [prompt_of(20), prompt_of(9, first=2)], SAMPLED, kv_cache={"memory": "64MiB"}, **changes
        )

    assert run(mesh={"tensor": 3, "pipeline": 2}) == run(mesh={"tensor": 2}) == run()

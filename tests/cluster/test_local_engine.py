"""Ranks as threads: no Ray, clear failures, and an end that leaves no thread."""

from __future__ import annotations

import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.cluster.engines import GREEDY, SAMPLED, Line, answer_all, answers, engine_for, prompt_of, read, settings_for
from tests.parity.random_model import CASES, write_folder
from tinycluster.cluster import local
from tinycluster.cluster.launch import start_engine
from tinycluster.cluster.rank_model import load_model
from tinycluster.engine.errors import CheckpointError, ConfigError, UnavailableError
from tinycluster.engine.request import SamplingParams

WITHOUT_RAY = """
import sys
from pathlib import Path
from tests.cluster.engines import GREEDY, Line, answers, prompt_of
answers(Path(sys.argv[1]), [prompt_of(5)], GREEDY, mesh={"tensor": 2})
assert not [name for name in sys.modules if name.split(".")[0] == "ray"], "ray was imported"
"""


def rank_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("rank-", "driver-"))]


def test_ray_is_not_imported(tiny_model: Path) -> None:
    root = Path(__file__).parent.parent.parent
    subprocess.run([sys.executable, "-c", WITHOUT_RAY, str(tiny_model)], cwd=root, check=True)


def test_two_engines_live_side_by_side(tiny_model: Path) -> None:
    expected = answers(tiny_model, [prompt_of(9)], GREEDY)
    with closing(engine_for(tiny_model)) as one, closing(engine_for(tiny_model, mesh={"tensor": 2})) as other:
        generations = [engine.submit(prompt_of(9), GREEDY) for engine in (one, other)]
        assert [read(generation) for generation in generations] == expected * 2


def test_closing_ends_every_thread(tiny_model: Path) -> None:
    with closing(engine_for(tiny_model, mesh={"tensor": 2, "pipeline": 2})):
        assert len(rank_threads()) == 5
    assert rank_threads() == []


def test_closing_in_the_middle_of_a_step_ends_every_thread(tiny_model: Path) -> None:
    engine = engine_for(tiny_model, mesh={"tensor": 3})
    generation = engine.submit(prompt_of(60), GREEDY)
    engine.close()
    with pytest.raises(UnavailableError, match="stopping"):
        list(generation)
    assert rank_threads() == []


def test_loading_is_reported_by_every_rank(tiny_model: Path) -> None:
    lines: list[Line] = []

    def new_line() -> Line:
        lines.append(Line())
        return lines[-1]

    settings = settings_for(tiny_model, mesh={"tensor": 2})
    start_engine(settings.models[0], settings, progress=new_line).close()
    loading = [line for line in lines if "loading" in line.label]
    assert sorted(line.label[:6] for line in loading) == ["rank 0", "rank 1"]
    assert all(line.num_bytes == line.total_bytes > 0 and line.is_finished for line in loading)


def test_a_rank_that_cannot_load_is_named_and_nothing_is_left(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_on_rank_1(blueprint: Any, rank: int, *arguments: Any, **options: Any) -> Any:
        if rank == 1:
            raise MemoryError("no room for weights")
        return load_model(blueprint, rank, *arguments, **options)

    monkeypatch.setattr(local, "load_model", fail_on_rank_1)
    with pytest.raises(UnavailableError, match=r"rank 1 .*did not start: MemoryError: no room for weights"):
        engine_for(tiny_model, mesh={"tensor": 2})
    assert rank_threads() == []


@pytest.mark.parametrize("mesh", [{"tensor": 2}, {"pipeline": 2}])
def test_a_number_out_of_range_ends_the_engine_with_a_sentence(tmp_path: Path, mesh: dict[str, int]) -> None:
    folder = write_folder(tmp_path, CASES["llama_seven_heads"], seed=1)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.down_proj.weight"] *= np.float32(1e30)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with closing(engine_for(folder, mesh=mesh)) as engine:
        with pytest.raises(UnavailableError, match=r"rank [01] .*down_proj\.weight: a partial sum is not smaller than"):
            list(engine.submit(prompt_of(5), GREEDY))
        engine.close()
    assert rank_threads() == []


def test_a_recommendation_that_no_request_may_have_is_a_sentence_and_can_be_replaced(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, CASES["llama_seven_heads"], seed=1)
    (folder / "generation_config.json").write_text('{"top_p": 0, "temperature": 0.5}')
    rule = r"recommends what no request may have: top_p must be .*, got 0\.0; set sampling\.top_p of tiny"
    with pytest.raises(ConfigError, match=rule):
        engine_for(folder)
    with closing(engine_for(folder, sampling={"top_p": 0.9})) as engine:
        assert engine.default_sampling == SamplingParams(temperature=0.5, top_p=0.9)


def test_a_cache_too_small_for_one_request_is_refused(tiny_model: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"kv_cache.memory of tiny must be at least \d+ bytes .* 128 tokens, got 1024"
    ):
        engine_for(tiny_model, kv_cache={"memory": "1KiB"})


def test_layers_that_do_not_add_up_are_refused(tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match="add up to the model's 3 layers"):
        engine_for(tiny_model, mesh={"pipeline": 2, "layers": [1, 1]})


def test_a_gpu_is_refused_as_long_as_there_is_no_gpu_code(tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match="device of tiny must be cpu"):
        engine_for(tiny_model, device="cuda")


def test_a_missing_model_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file or folder"):
        engine_for(tmp_path / "absent")
    assert rank_threads() == []


def test_two_hundred_aborted_requests_leave_no_block_in_use(tiny_model: Path) -> None:
    limits = {"max_model_len": 128, "max_running": 16, "max_waiting": 200}
    with closing(engine_for(tiny_model, limits=limits)) as engine:
        before = answer_all(engine, [prompt_of(20)], GREEDY)
        endless = replace(SAMPLED, max_tokens=None)
        generations = [engine.submit(prompt_of(30, first=index), endless) for index in range(200)]
        for generation in generations[:16]:
            next(iter(generation))
        for generation in generations:
            generation.abort()
        assert engine.cache_use.num_used == engine.num_running == engine.num_waiting == 0
        assert answer_all(engine, [prompt_of(20)], GREEDY) == before

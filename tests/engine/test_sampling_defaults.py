"""What a model's makers recommend, from both kinds of checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gguf.constants import Keys

from tests.engine.gguf_file import write_gguf
from tests.parity.random_model import SEVEN_HEADS, write_folder
from tinycluster.engine.checkpoint import open_checkpoint
from tinycluster.engine.errors import CheckpointError
from tinycluster.engine.request import SamplingParams

QWENS = {"do_sample": True, "repetition_penalty": 1.05, "temperature": 0.7, "top_p": 0.8, "top_k": 20}
"""As Qwen2.5 is published."""
IN_GGUF = {
    "temperature": Keys.General.SAMPLING_TEMP,
    "top_k": Keys.General.SAMPLING_TOP_K,
    "top_p": Keys.General.SAMPLING_TOP_P,
    "min_p": Keys.General.SAMPLING_MIN_P,
    "repetition_penalty": Keys.General.SAMPLING_PENALTY_REPEAT,
}


def of_folder(folder: Path, given: dict[str, Any]) -> SamplingParams:
    (write_folder(folder, SEVEN_HEADS, 1) / "generation_config.json").write_text(json.dumps(given))
    return open_checkpoint(folder).default_sampling


def of_gguf(folder: Path, given: dict[str, Any]) -> SamplingParams:
    change = {IN_GGUF[name]: value for name, value in given.items()}
    return open_checkpoint(write_gguf(folder / "model.gguf", change=change)).default_sampling


def test_a_folder_says_it_in_generation_config(tmp_path: Path) -> None:
    given = QWENS | {"min_p": None, "max_new_tokens": 5, "typical_p": 0.3}
    assert of_folder(tmp_path, given) == SamplingParams(0.7, 20, 0.8, repetition_penalty=1.05)


def test_a_gguf_file_says_it_in_its_metadata_as_it_was_before_it_became_float32(tmp_path: Path) -> None:
    given = {"temperature": 0.7, "top_k": 20, "top_p": 0.95, "min_p": 0.05, "repetition_penalty": 1.05}
    assert of_gguf(tmp_path, given) == SamplingParams(0.7, 20, 0.95, 0.05, repetition_penalty=1.05)


def test_whoever_says_nothing_has_openais_defaults(tmp_path: Path, smollm2_path: Path) -> None:
    assert of_folder(tmp_path / "folder", {}) == of_gguf(tmp_path, {}) == SamplingParams()
    assert open_checkpoint(write_folder(tmp_path / "none", SEVEN_HEADS, 1)).default_sampling == SamplingParams()
    assert open_checkpoint(smollm2_path).default_sampling == SamplingParams()


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({"temperature": "hot"}, "temperature must be a number, got 'hot'"),
        ({"top_p": True}, "top_p must be a number, got True"),
        ({"top_k": 20.5}, "top_k must be a whole number, got 20.5"),
        ({"temperature": 10**400}, "temperature must be a number, got 1" + "0" * 39),
        ({"temperature": float("inf")}, "temperature must be a number, got inf"),
        ({"top_k": float("nan")}, "top_k must be a whole number, got nan"),
        ({"min_p": "x" * 5000}, "min_p must be a number, got '" + "x" * 39),
    ],
)
def test_what_is_no_number_is_refused_with_the_file(tmp_path: Path, given: dict[str, Any], rule: str) -> None:
    with pytest.raises(CheckpointError) as raised:
        of_folder(tmp_path, given)
    assert str(raised.value) == f"{tmp_path / 'generation_config.json'}: {rule}"


def test_what_is_no_number_is_refused_in_gguf_files_too(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.gguf: top_k must be a whole number, got '20'"):
        of_gguf(tmp_path, {"top_k": "20"})


def test_whole_numbers_may_be_written_as_either_kind(tmp_path: Path) -> None:
    made = of_folder(tmp_path, {"top_k": 50.0, "temperature": 1})
    assert repr(made) == repr(SamplingParams(1.0, 50))

"""How a model's makers want it sampled: of generation_config.json, and of GGUF files, which carry the same.

vLLM and llama.cpp take their defaults from there, too. As in both, `do_sample` does not count: greedy is temperature 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinycluster.engine.errors import CheckpointError
from tinycluster.engine.json_file import read_json_if_present
from tinycluster.engine.request import SamplingParams

GGUF_KEYS = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}
"""By the names that generation_config.json and SamplingParams have."""
LARGEST = 2**31
"""More than anything here may be, and less than what has no float."""


def sampling_of_folder(folder: Path) -> SamplingParams:
    """SamplingParams' defaults where the folder says nothing. CheckpointError for what is no number; what is out of its
    range may still be replaced."""
    file = folder / "generation_config.json"
    given = read_json_if_present(file)
    return _numbers({name: given.get(name) for name in GGUF_KEYS}, file)


def sampling_of_gguf(path: Path, fields: Mapping[str, Any]) -> SamplingParams:
    """The same of a file's metadata."""
    return _numbers({name: _decimal(fields.get(key)) for name, key in GGUF_KEYS.items()}, path)


def _decimal(value: Any) -> Any:
    """0.95 for the float32 0.949999988079071, as it was before the conversion."""
    return float(f"{value:.7g}") if isinstance(value, float) else value


def _numbers(recommended: Mapping[str, Any], file: Path) -> SamplingParams:
    given: dict[str, Any] = {}
    for name, value in recommended.items():
        if value is None:
            continue
        is_number = type(value) in (int, float) and abs(value) < LARGEST
        if not is_number or (name == "top_k" and value != int(value)):
            kind = "a whole number" if name == "top_k" else "a number"
            raise CheckpointError(f"{file}: {name} must be {kind}, got {value!r:.40}")
        given[name] = int(value) if name == "top_k" else float(value)
    return SamplingParams(**given)

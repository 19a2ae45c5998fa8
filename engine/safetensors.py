"""A Hugging Face folder: config.json, safetensors files and a tokenizer.

The safetensors library checks each header; the tensors are then read from the mapped file, because its numpy interface
knows no bfloat16.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from tinycluster.engine.end_tokens import end_tokens_of_folder
from tinycluster.engine.errors import CheckpointError
from tinycluster.engine.hf_config import FieldError, model_config
from tinycluster.engine.json_file import read_json
from tinycluster.engine.models.spec import ModelConfig
from tinycluster.engine.request import SamplingParams
from tinycluster.engine.sampling_defaults import sampling_of_folder
from tinycluster.engine.tensor_table import DTYPES, DenseFormat, TensorEntry, check_slices, map_file, read_dense
from tinycluster.kernels.formats import HostTensor

if TYPE_CHECKING:
    from tinycluster.engine.tokenizer import Tokenizer

FORMATS: dict[str, DenseFormat] = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
WEIGHT_PREFIXES = ("model.embed_tokens.", "model.layers.", "model.norm.", "lm_head.")
# Old conversions saved the rotation frequencies, which the configuration already determines.
BUFFERS = ("rotary_emb.inv_freq",)
SAMPLE_BYTES = 64


@dataclass(frozen=True)
class _Stored:
    """A tensor in one mapped file; `offset` counts from the start of the file."""

    mapped: NDArray[np.uint8]
    format: DenseFormat
    shape: tuple[int, ...]
    offset: int
    num_bytes: int

    @property
    def values(self) -> NDArray[Any]:
        raw = self.mapped[self.offset : self.offset + self.num_bytes]
        return raw.view(DTYPES[self.format]).reshape(self.shape)


class SafetensorsCheckpoint:
    """Raises CheckpointError when a file is missing or damaged, or the model or a tensor type is not supported."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._digest = hashlib.sha256()
        self.config = self._config()
        self._tensors: dict[str, _Stored] = {}
        for file, names in self._files().items():
            self._add_file(file, names)
        if self.config.tie_word_embeddings:
            self._tensors.pop("lm_head.weight", None)
        self._entries = {
            name: TensorEntry(stored.shape, stored.format, stored.format) for name, stored in self._tensors.items()
        }
        self.digest = self._digest.hexdigest()

    def tensors(self) -> Mapping[str, TensorEntry]:
        return self._entries

    def read(self, name: str, slices: tuple[range, ...]) -> HostTensor:
        stored = self._tensors[name]
        check_slices(name, stored.shape, slices)
        return read_dense(stored.values, stored.format, slices)

    def tokenizer(self) -> Tokenizer:
        # Ranks never ask for it, and would only pay for its libraries.
        from tinycluster.engine.folder_tokenizer import build_tokenizer

        return build_tokenizer(self.path, self.config)

    @property
    def default_sampling(self) -> SamplingParams:
        return sampling_of_folder(self.path)

    def _config(self) -> ModelConfig:
        path = self.path / "config.json"
        fields = read_json(path)
        self._digest.update(json.dumps(fields, sort_keys=True).encode())
        try:
            return model_config(fields, eos_token_ids=end_tokens_of_folder(self.path, fields))
        except FieldError as error:
            raise CheckpointError(f"{path}: {error}") from error

    def _files(self) -> dict[Path, frozenset[str] | None]:
        """The weight files, each with the names that the index expects in it (None: whatever it has)."""
        if (self.path / SINGLE).exists():
            return {self.path / SINGLE: None}
        if not (self.path / INDEX).exists():
            raise CheckpointError(
                f"{self.path}: neither {SINGLE} nor {INDEX} is there; other weight files are not read"
            )
        weight_map = read_json(self.path / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
            raise CheckpointError(f"{self.path / INDEX}: weight_map must map tensor names to file names")
        for file in sorted(set(weight_map.values())):
            if Path(file).name != file or file in (".", "..") or not file.isprintable():
                raise CheckpointError(f"{self.path / INDEX}: {file!r} must be the name of a file beside the index")
        return {
            self.path / file: frozenset(name for name, other in weight_map.items() if other == file)
            for file in sorted(set(weight_map.values()))
        }

    def _add_file(self, path: Path, names: frozenset[str] | None) -> None:
        mapped = map_file(str(path))
        table, start = _header(path, mapped)
        self._digest.update(f"{mapped.shape[0]}".encode())
        self._digest.update(mapped[:start].data)
        for name in sorted(names or ()):
            if name not in table:
                raise CheckpointError(f"{path}: tensor {name} is missing; {INDEX} says that it is in this file")
        for name, entry in table.items():
            # What other names hold is not this model's: buffers, adapters, vision towers.
            if name.startswith(WEIGHT_PREFIXES) and not name.endswith(BUFFERS):
                self._add_tensor(path, name, entry, mapped, start)

    def _add_tensor(self, path: Path, name: str, entry: Any, mapped: NDArray[np.uint8], start: int) -> None:
        if entry["dtype"] not in FORMATS:
            supported = ", ".join(FORMATS)
            raise CheckpointError(f"{path}: tensor {name} has type {entry['dtype']}; supported are {supported}")
        if name in self._tensors:
            raise CheckpointError(f"{path}: tensor {name} is also in another file of the folder")
        first, last = entry["data_offsets"]
        stored = _Stored(mapped, FORMATS[entry["dtype"]], tuple(entry["shape"]), start + first, last - first)
        middle = stored.offset + stored.num_bytes // 2
        self._digest.update(mapped[middle : middle + SAMPLE_BYTES].data)
        self._tensors[name] = stored


def _header(path: Path, mapped: NDArray[np.uint8]) -> tuple[dict[str, Any], int]:
    """The table of a file that the library accepts (offsets in order, without gaps, within the file); data start."""
    try:
        with safe_open(str(path), framework="np"):
            pass
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a valid safetensors file: {error}") from error
    length = int.from_bytes(mapped[:8].tobytes(), "little")
    try:
        table = json.loads(mapped[8 : 8 + length].tobytes(), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a valid safetensors file: {error}") from error
    table.pop("__metadata__", None)
    return table, 8 + length


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("its header names a tensor twice")
    return members

"""A GGUF file (llama.cpp's format) as a checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from gguf.constants import GGMLQuantizationType
from numpy.typing import NDArray

from tinycluster.engine.end_tokens import end_tokens_of_gguf
from tinycluster.engine.errors import CheckpointError
from tinycluster.engine.gguf_blocks import BlockError, read_tensor, table_entry
from tinycluster.engine.gguf_config import MetadataError, hugging_face_name, model_config, row_order
from tinycluster.engine.gguf_header import GgufTensor, read_header
from tinycluster.engine.models.spec import ModelConfig
from tinycluster.engine.request import SamplingParams
from tinycluster.engine.sampling_defaults import sampling_of_gguf
from tinycluster.engine.tensor_table import TensorEntry, check_slices
from tinycluster.kernels.formats import HostTensor

if TYPE_CHECKING:
    from tinycluster.engine.tokenizer import Tokenizer

SAMPLE_BYTES = 64


class GgufCheckpoint:
    """Raises CheckpointError when the header is damaged or the model or a tensor type is not supported."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._header = read_header(str(path))
        if self._header.fields.get("split.count", 1) != 1:
            raise CheckpointError(f"{path}: a GGUF file split into several is not supported; merge it first")
        self._tensors: dict[str, GgufTensor] = {}
        for name, tensor in self._header.tensors.items():
            if (hugging_face := hugging_face_name(name)) is not None:
                self._tensors[hugging_face] = tensor
        self._entries = {name: self._entry(tensor) for name, tensor in self._tensors.items()}
        self.config = self._config()
        self.digest = self._digest()

    def tensors(self) -> Mapping[str, TensorEntry]:
        return self._entries

    def read(self, name: str, slices: tuple[range, ...]) -> HostTensor:
        tensor = self._tensors[name]
        check_slices(name, tensor.shape, slices)
        try:
            return read_tensor(self._header.mapped, tensor, slices, self._row_order(tensor))
        except BlockError as error:
            raise CheckpointError(f"{self.path}: tensor {tensor.name}: {error}") from error

    def tokenizer(self) -> Tokenizer:
        # Ranks never ask for it, and would only pay for its libraries.
        from tinycluster.engine.gguf_tokenizer import build_tokenizer

        return build_tokenizer(self.path, self._header.fields)

    @property
    def default_sampling(self) -> SamplingParams:
        return sampling_of_gguf(self.path, self._header.fields)

    def _entry(self, tensor: GgufTensor) -> TensorEntry:
        try:
            return table_entry(tensor)
        except BlockError as error:
            raise CheckpointError(f"{self.path}: tensor {tensor.name}: {error}") from error

    def _config(self) -> ModelConfig:
        embedding = self._entries.get("model.embed_tokens.weight")
        if embedding is None:
            raise CheckpointError(f"{self.path}: tensor token_embd.weight is missing")
        try:
            return model_config(
                self._header.fields,
                vocab_size=embedding.shape[0],
                tensor_names=frozenset(self._entries),
                rope_divisors=self._rope_divisors(),
                eos_token_ids=end_tokens_of_gguf(self._header.fields),
            )
        except MetadataError as error:
            raise CheckpointError(f"{self.path}: {error}") from error

    def _rope_divisors(self) -> NDArray[np.float32] | None:
        tensor = self._header.tensors.get("rope_freqs.weight")
        if tensor is None:
            return None
        if tensor.type != GGMLQuantizationType.F32:
            raise CheckpointError(f"{self.path}: tensor {tensor.name} must be F32, it is {tensor.type.name}")
        raw = self._header.mapped[tensor.offset : tensor.offset + tensor.num_bytes]
        return np.frombuffer(raw.tobytes(), np.float32)

    def _row_order(self, tensor: GgufTensor) -> NDArray[np.int64] | None:
        """Only `llama` files store Q and K with their rows interleaved."""
        if self._header.fields["general.architecture"] != "llama":
            return None
        num_heads = {"attn_q": self.config.num_attention_heads, "attn_k": self.config.num_key_value_heads}
        part = tensor.name.split(".")[-2]
        if part not in num_heads:
            return None
        order = row_order(num_heads[part], self.config.head_dim)
        if len(order) != tensor.shape[0]:
            raise CheckpointError(
                f"{self.path}: tensor {tensor.name} must have {len(order)} rows, it has {tensor.shape[0]}"
            )
        return order

    def _digest(self) -> str:
        mapped, header = self._header.mapped, self._header
        digest = hashlib.sha256(str(mapped.shape[0]).encode())
        digest.update(mapped[: header.num_bytes].data)
        for tensor in header.tensors.values():
            middle = tensor.offset + tensor.num_bytes // 2
            digest.update(mapped[middle : middle + SAMPLE_BYTES].data)
        return digest.hexdigest()

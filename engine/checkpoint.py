"""Open a model from disk: a Hugging Face folder or a GGUF file, behind one protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tinycluster.engine.errors import CheckpointError
from tinycluster.engine.gguf import GgufCheckpoint
from tinycluster.engine.models.spec import ModelConfig
from tinycluster.engine.request import SamplingParams
from tinycluster.engine.safetensors import SafetensorsCheckpoint
from tinycluster.engine.tensor_table import TensorEntry as TensorEntry
from tinycluster.kernels.formats import HostTensor
from tinycluster.parallel.units import WeightSpec

if TYPE_CHECKING:
    from tinycluster.engine.tokenizer import Tokenizer


class Checkpoint(Protocol):
    """A model's configuration, weights and tokenizer. Weights carry Hugging Face's names and shapes."""

    @property
    def path(self) -> Path:
        """The folder or file that error messages name."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def default_sampling(self) -> SamplingParams:
        """What the model's makers recommend. CheckpointError for what is no number."""

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the headers, the sizes and a sample of every tensor's bytes: cheap, however large the model.

        Two ranks with equal digests read the same model; it does not protect against a forged file.
        """

    def tensors(self) -> Mapping[str, TensorEntry]:
        """Every weight in the checkpoint. A tied head is absent."""

    def read(self, name: str, slices: tuple[range, ...]) -> HostTensor:
        """Copy one slice per dimension out of the mapped file; nothing else of the tensor is read.

        Columns of a grouped tensor that are not whole groups of 32 come back as dequantized f32. KeyError for an
        unknown name, ValueError for a slice outside the tensor, CheckpointError for contents that cannot be used.
        """

    def tokenizer(self) -> Tokenizer:
        """Built on each call. CheckpointError if the model has none that can be used."""


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a folder or a .gguf file: headers are read and checked, weights are not. CheckpointError otherwise."""
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder")
    checkpoint = SafetensorsCheckpoint(path) if path.is_dir() else GgufCheckpoint(path)
    # A damaged count of layers would make every later table as long.
    last = f"model.layers.{checkpoint.config.num_hidden_layers - 1}.input_layernorm.weight"
    if last not in checkpoint.tensors():
        num_layers = checkpoint.config.num_hidden_layers
        raise CheckpointError(f"{path}: tensor {last} is missing; the configuration asks for {num_layers} layers")
    return checkpoint


def validate(checkpoint: Checkpoint, specs: Sequence[WeightSpec]) -> None:
    """Check that every weight a model needs is there with its shape. CheckpointError names file, tensor and rule."""
    tensors = checkpoint.tensors()
    for spec in specs:
        entry = tensors.get(spec.name)
        if entry is None:
            architecture = checkpoint.config.architecture
            raise CheckpointError(f"{checkpoint.path}: tensor {spec.name} is missing; {architecture} needs it")
        if entry.shape != tuple(spec.shape):
            raise CheckpointError(
                f"{checkpoint.path}: tensor {spec.name} has shape {list(entry.shape)}, "
                f"the model's configuration asks for {list(spec.shape)}"
            )

"""A checkpoint's tensors by name, and slices of tensors that lie in a mapped file.

Shape legend: N = rows (or the length of a vector), K = columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tinycluster.engine.errors import CheckpointError
from tinycluster.kernels.formats import DenseTensor, Format

DenseFormat = Literal["f32", "f16", "bf16"]
DTYPES: dict[DenseFormat, type[np.generic]] = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}


@dataclass(frozen=True)
class TensorEntry:
    """What `read` answers for a tensor, and what the file holds.

    `format` is the format of the tensors that `read` returns. `stored_as` is the format that `weights: stored` means:
    the same, except for a file type that is only read by dequantizing it (`format` f32, `stored_as` q8).
    """

    shape: tuple[int, ...]
    format: Format
    stored_as: Format


def check_slices(name: str, shape: Sequence[int], slices: Sequence[range]) -> None:
    """Slices must be one contiguous range inside each dimension; anything else is a mistake of the caller."""
    if len(slices) != len(shape):
        raise ValueError(f"{name} has {len(shape)} dimensions, got {len(slices)} slices")
    for size, part in zip(shape, slices, strict=True):
        if part.step != 1 or not (0 <= part.start <= size) or len(part) > size - part.start:
            raise ValueError(f"{name}: {part} does not lie in a dimension of {size}")


def as_slice(part: range) -> slice:
    return slice(part.start, part.start + len(part))


def read_dense(mapped: NDArray[Any], format: DenseFormat, slices: Sequence[range]) -> DenseTensor:
    """Copy the asked slices of a mapped f32, f16 or bf16 tensor; only their pages are read."""
    part = mapped[tuple(as_slice(part) for part in slices)]
    return DenseTensor(format, np.array(part, dtype=DTYPES[format], order="C", copy=True))


def map_file(path: str) -> NDArray[np.uint8]:
    """The bytes of a file, mapped read-only: (size,) uint8. CheckpointError if it cannot be opened or is empty."""
    try:
        return np.memmap(path, dtype=np.uint8, mode="r")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: the file is empty") from error

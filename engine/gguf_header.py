"""The header of a GGUF file, read within bounds (format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).

The package's own reader makes an array object of every string and number: it takes seconds on a real vocabulary and,
given a damaged length, fills the memory. This walk checks every length against the rest of the file before it reads.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from numpy.typing import NDArray

from tinycluster.engine.errors import CheckpointError
from tinycluster.engine.tensor_table import map_file

MAX_DIMENSIONS = 4
MAX_FIELD_NAME_BYTES, MAX_TENSOR_NAME_BYTES = 2**16 - 1, 64
MAX_STRINGS = 2**22
"""Of an array; vocabularies and their merges have a quarter of it."""
LENGTH = struct.Struct("<Q")
SCALARS: dict[int, str] = {
    int(GGUFValueType.UINT8): "<u1",
    int(GGUFValueType.INT8): "<i1",
    int(GGUFValueType.UINT16): "<u2",
    int(GGUFValueType.INT16): "<i2",
    int(GGUFValueType.UINT32): "<u4",
    int(GGUFValueType.INT32): "<i4",
    int(GGUFValueType.FLOAT32): "<f4",
    int(GGUFValueType.BOOL): "?",
    int(GGUFValueType.UINT64): "<u8",
    int(GGUFValueType.INT64): "<i8",
    int(GGUFValueType.FLOAT64): "<f8",
}


@dataclass(frozen=True)
class GgufTensor:
    """shape is in row-major order (rows first); offset counts from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    offset: int
    num_bytes: int


@dataclass(frozen=True)
class GgufHeader:
    """fields hold str, int, float, bool, list[str] or a numpy array; num_bytes is where the tensor data begins."""

    mapped: NDArray[np.uint8]
    fields: dict[str, Any]
    tensors: dict[str, GgufTensor]
    num_bytes: int


def read_header(path: str) -> GgufHeader:
    """Map a GGUF file and read its header. CheckpointError names the file and what is wrong with it."""
    mapped = map_file(path)
    try:
        return _Walk(mapped).header()
    except _MalformedError as error:
        raise CheckpointError(f"{path}: {error}") from error


class _MalformedError(Exception):
    pass


class _Walk:
    """A position in the mapped bytes that never passes their end."""

    def __init__(self, mapped: NDArray[np.uint8]) -> None:
        self._mapped = mapped
        self._buffer: memoryview = mapped.data
        self._size = int(mapped.shape[0])
        self._position = 0

    def header(self) -> GgufHeader:
        if self._size < 4 or bytes(self._buffer[:4]) != b"GGUF":
            raise _MalformedError("not a GGUF file (the first four bytes must be 'GGUF')")
        self._position = 4
        version = self._number("<I")
        if version not in (2, 3):
            raise _MalformedError(f"GGUF version must be 2 or 3 (little-endian), got {version}")
        num_tensors, num_fields = self._number("<Q"), self._number("<Q")
        fields: dict[str, Any] = {}
        for _ in range(num_fields):
            name = self._name("a field", MAX_FIELD_NAME_BYTES)
            if name in fields:
                raise _MalformedError(f"field {name} stands twice in the header")
            fields[name] = self._value(name, self._number("<I"))
        tensors = self._tensors(num_tensors, fields.get("general.alignment", 32))
        return GgufHeader(self._mapped, fields, tensors, self._position)

    def _tensors(self, num_tensors: int, alignment: Any) -> dict[str, GgufTensor]:
        if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
            raise _MalformedError(f"general.alignment must be a power of two, got {alignment!r}")
        relative = [self._tensor() for _ in range(num_tensors)]
        self._position += -self._position % alignment
        tensors: dict[str, GgufTensor] = {}
        end = 0
        for tensor in relative:
            if tensor.name in tensors:
                raise _MalformedError(f"tensor {tensor.name} stands twice in the header")
            if tensor.offset % alignment:
                raise _MalformedError(f"tensor {tensor.name}: its offset must be a multiple of {alignment}")
            offset = self._position + tensor.offset
            if offset + tensor.num_bytes > self._size:
                missing = offset + tensor.num_bytes - self._size
                raise _MalformedError(f"tensor {tensor.name}: its data ends {missing} bytes past the end of the file")
            if tensor.offset != end + -end % alignment:
                raise _MalformedError(f"tensor {tensor.name}: its data must follow the last tensor's")
            end = tensor.offset + tensor.num_bytes
            tensors[tensor.name] = GgufTensor(tensor.name, tensor.shape, tensor.type, offset, tensor.num_bytes)
        return tensors

    def _tensor(self) -> GgufTensor:
        name = self._name("a tensor", MAX_TENSOR_NAME_BYTES)
        num_dimensions = self._number("<I")
        if not 1 <= num_dimensions <= MAX_DIMENSIONS:
            raise _MalformedError(f"tensor {name} must have 1 to {MAX_DIMENSIONS} dimensions, got {num_dimensions}")
        shape = tuple(reversed([self._number("<Q") for _ in range(num_dimensions)]))
        raw_type = self._number("<I")
        try:
            type_ = GGMLQuantizationType(raw_type)
        except ValueError:
            raise _MalformedError(f"tensor {name} has the unknown type number {raw_type}") from None
        block_elements, block_bytes = GGML_QUANT_SIZES[type_]
        if shape[-1] % block_elements:
            raise _MalformedError(f"tensor {name}: {type_.name} rows must be a multiple of {block_elements} wide")
        num_bytes = math.prod(shape) // block_elements * block_bytes
        return GgufTensor(name, shape, type_, self._number("<Q"), num_bytes)

    def _value(self, name: str, type_: int) -> Any:
        if type_ == GGUFValueType.STRING:
            return self._string()
        if type_ == GGUFValueType.ARRAY:
            return self._array(name)
        if type_ not in SCALARS:
            raise _MalformedError(f"field {name} has the unknown type number {type_}")
        return self._numbers(SCALARS[type_], 1)[0].item()

    def _array(self, name: str) -> Any:
        type_, length = self._number("<I"), self._number("<Q")
        if type_ == GGUFValueType.STRING:
            return self._strings(length)
        if type_ not in SCALARS:
            raise _MalformedError(f"field {name} is an array of the unsupported type number {type_}")
        return self._numbers(SCALARS[type_], length)

    def _strings(self, length: int) -> list[str]:
        """As `_string`, without its calls: a vocabulary has hundreds of thousands."""
        self._require(length * LENGTH.size)
        if length > MAX_STRINGS:
            raise _MalformedError(f"an array has {length} strings, more than {MAX_STRINGS}")
        buffer, size, position = self._buffer, self._size, self._position
        strings: list[str] = []
        for _ in range(length):
            start = position + LENGTH.size
            position = start + LENGTH.unpack_from(buffer, position)[0] if start <= size else size + 1
            if position > size:
                raise _MalformedError(
                    f"the header is truncated or damaged: a string at byte {start} ends past the file"
                )
            try:
                strings.append(str(buffer[start:position], "utf-8"))
            except UnicodeDecodeError:
                raise _MalformedError(f"the header's string at byte {start} is not UTF-8") from None
        self._position = position
        return strings

    def _numbers(self, dtype: str, length: int) -> NDArray[Any]:
        num_bytes = length * np.dtype(dtype).itemsize
        self._require(num_bytes)
        raw = bytes(self._buffer[self._position : self._position + num_bytes])
        self._position += num_bytes
        return np.frombuffer(raw, dtype=dtype)

    def _number(self, layout: str) -> int:
        self._require(struct.calcsize(layout))
        (value,) = struct.unpack_from(layout, self._buffer, self._position)
        self._position += struct.calcsize(layout)
        return int(value)

    def _string(self) -> str:
        length = self._number("<Q")
        self._require(length)
        start, self._position = self._position, self._position + length
        try:
            return str(self._buffer[start : self._position], "utf-8")
        except UnicodeDecodeError:
            raise _MalformedError(f"the header's string at byte {start} is not UTF-8") from None

    def _name(self, owner: str, max_bytes: int) -> str:
        name = self._string()
        if not 1 <= len(name.encode()) <= max_bytes:
            raise _MalformedError(f"the name of {owner} must have 1 to {max_bytes} bytes, got {name[:32]!r}")
        return name

    def _require(self, num_bytes: int) -> None:
        if num_bytes > self._size - self._position:
            raise _MalformedError(
                f"the header is truncated or damaged: {num_bytes} bytes are needed at byte {self._position}, "
                f"the file ends at {self._size}"
            )

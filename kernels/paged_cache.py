"""One rank's paged cache of keys and values: its layout, its size, and what the native operations take of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from tinycluster.kernels._cpu import KVCache
from tinycluster.kernels.program import KVShape

KVDtype = Literal["f32", "bf16", "q8"]
"""How keys and values are held; `reference.round_kv` says what reading them back gives."""
LANES = 16
GROUP = 32
_CODE_BYTES: dict[KVDtype, int] = {"f32": 4, "bf16": 2, "q8": 1}
_SCALE_BYTES: dict[KVDtype, int] = {"f32": 0, "bf16": 0, "q8": 4}


class PagedCache:
    """One rank's keys and values in blocks of `block_tokens` positions.

    Per layer, keys and values are bytes (num_blocks, heads, tiles, tile_bytes). A tile holds 16 positions of one head:
    keys as (head_dim, 16), for SIMD over positions; values as (16, head_dim rounded up to 16), for SIMD over columns.
    In a q8 tile follow the float32 scales of groups of 32 columns: (groups, 16) of keys, (16, groups) of values.
    """

    def __init__(self, shape: KVShape, num_blocks: int, block_tokens: int, dtype: KVDtype = "f32") -> None:
        if block_tokens % LANES or block_tokens & (block_tokens - 1):
            raise ValueError(f"block_tokens must be a power of two of at least {LANES}, got {block_tokens}")
        self.shape, self.num_blocks, self.block_tokens, self.dtype = shape, num_blocks, block_tokens, dtype
        tiles = (num_blocks, shape.num_heads, block_tokens // LANES)
        key_bytes, value_bytes = self._tile_bytes(shape.head_dim, dtype)
        # All layers in one array: from 4 MiB on numpy asks for huge pages, which a walk over scattered tiles needs.
        self._all = tuple(np.zeros((shape.num_layers, *tiles, size), np.uint8) for size in (key_bytes, value_bytes))
        self.keys, self.values = map(list, self._all)
        self.layers = [
            KVCache(keys, values, shape.head_dim, block_tokens, dtype)
            for keys, values in zip(self.keys, self.values, strict=True)
        ]
        """What the native operations of each layer take."""

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """One after the other, the second block of each pair becomes a copy of the first in every layer."""
        for source, copy in copies:
            for layers in self._all:
                layers[:, copy] = layers[:, source]

    @staticmethod
    def bytes_per_block(shape: KVShape, block_tokens: int, dtype: KVDtype = "f32") -> int:
        """Memory of one block over all layers of the shape."""
        tiles = shape.num_layers * shape.num_heads * block_tokens // LANES
        return tiles * sum(PagedCache._tile_bytes(shape.head_dim, dtype))

    @staticmethod
    def _tile_bytes(head_dim: int, dtype: KVDtype) -> tuple[int, int]:
        """Bytes of 16 positions' keys and values."""
        scales = _SCALE_BYTES[dtype] * -(-head_dim // GROUP)
        padded = -(-head_dim // LANES) * LANES
        return LANES * (_CODE_BYTES[dtype] * head_dim + scales), LANES * (_CODE_BYTES[dtype] * padded + scales)

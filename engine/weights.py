"""One rank's weights: from the table of WeightSpecs and the mapped checkpoint to packed matrices.

Weights are read one after the other, so the peak is the packed weights plus one tensor in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

from tinycluster.engine.checkpoint import Checkpoint
from tinycluster.kernels.formats import GROUP, Format, dequantize
from tinycluster.kernels.packing import Arena, PackedWeight, pack
from tinycluster.kernels.program import F32
from tinycluster.parallel.units import Shares, WeightSpec

VOCABULARY_WEIGHTS = frozenset({"model.embed_tokens.weight", "lm_head.weight"})
BYTES_PER_WEIGHT: Mapping[Format, float] = {"f32": 4, "f16": 2, "bf16": 2, "q8": 1 + 2 / GROUP, "q4": 0.5 + 4 / GROUP}


def load_weights(
    checkpoint: Checkpoint,
    specs: Sequence[WeightSpec],
    shares: Shares,
    wanted: Format | None,
    on_bytes: Callable[[int], None] = lambda num_bytes: None,
) -> dict[str, PackedWeight | F32]:
    """The slices of `shares`: matrices packed in their `held_format`, norms and biases as float32 vectors.

    A row-parallel matrix that is stored in groups, with units that are not whole groups, is held as float32 (see
    `kernels.packing`). `on_bytes` is called after each weight; the calls add up to `loaded_bytes`.
    """
    weights: dict[str, PackedWeight | F32] = {}
    arena = Arena()
    for spec in specs:
        tensor = checkpoint.read(spec.name, spec.slices(shares))
        if len(spec.shape) == 1:
            weights[spec.name] = dequantize(tensor)
        else:
            unit = spec.split.unit if spec.split is not None and spec.split_dim == 1 else None
            weights[spec.name] = pack(tensor, unit=unit, format=_conversion(spec, wanted), arena=arena)
        on_bytes(_bytes(checkpoint, spec, shares, wanted))
    return weights


def held_format(spec: WeightSpec, stored: Format, wanted: Format | None) -> Format:
    """How a weight is held in memory when the checkpoint stores it as `stored`; None wants it as it is.

    With q4 the embedding and the head stay q8: they are a small part of a model, and each of their rows is one token.
    """
    return "f32" if len(spec.shape) == 1 else _conversion(spec, wanted) or stored


def loaded_bytes(checkpoint: Checkpoint, specs: Sequence[WeightSpec], shares: Shares, wanted: Format | None) -> int:
    """What a rank's weights take in memory, without the padding to whole tiles and groups."""
    return sum(_bytes(checkpoint, spec, shares, wanted) for spec in specs)


def _conversion(spec: WeightSpec, wanted: Format | None) -> Format | None:
    return "q8" if wanted == "q4" and spec.name in VOCABULARY_WEIGHTS else wanted


def _bytes(checkpoint: Checkpoint, spec: WeightSpec, shares: Shares, wanted: Format | None) -> int:
    held = held_format(spec, checkpoint.tensors()[spec.name].format, wanted)
    return int(prod(map(len, spec.slices(shares))) * BYTES_PER_WEIGHT[held])

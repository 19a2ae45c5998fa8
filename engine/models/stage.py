"""The part of a model that one pipeline stage computes."""

from __future__ import annotations

from dataclasses import dataclass

from tinycluster.engine.models.spec import ModelConfig


@dataclass(frozen=True)
class Stage:
    """A contiguous range of layers. The first stage also embeds the tokens, the last one also computes the logits."""

    layers: range
    is_first: bool
    is_last: bool

    @classmethod
    def whole(cls, config: ModelConfig) -> Stage:
        return cls(range(config.num_hidden_layers), is_first=True, is_last=True)

"""What the API may know of a model."""

from __future__ import annotations

from dataclasses import dataclass

from tinycluster.cluster.rank_card import RankCard
from tinycluster.engine.models.spec import ModelConfig
from tinycluster.engine.request import SamplingParams
from tinycluster.engine.tokenizer import Tokenizer
from tinycluster.parallel.mesh import Mesh


@dataclass(frozen=True)
class ModelCard:
    """One served model. `max_model_len` are the tokens of a prompt and its answer together. `default_sampling` holds
    where a request says nothing of how tokens are chosen."""

    name: str
    config: ModelConfig
    tokenizer: Tokenizer
    mesh: Mesh
    max_model_len: int
    default_sampling: SamplingParams
    ranks: tuple[RankCard, ...] = ()

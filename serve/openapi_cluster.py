"""The answer of GET /api/cluster, for the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field


class RankOfModel(BaseModel):
    model: str
    rank: int


class ClusterNode(BaseModel):
    id: str
    name: str
    address: str
    cpus: float
    memory_bytes: int
    is_alive: bool
    ranks: list[RankOfModel]


class MeshShape(BaseModel):
    tensor: int
    pipeline: int


class CacheBlocks(BaseModel):
    """free + used + cached are all blocks."""

    blocks: int
    used: int
    cached: int
    free: int
    block_tokens: int


class Recoveries(BaseModel):
    count: int
    last_s: float | None


class RankUnits(BaseModel):
    heads: int
    mlp: int
    vocab: int


class RankLoad(BaseModel):
    """Parts of the last second; what is missing to 1 the rank was idle."""

    compute: float
    communicate: float
    wait: float


class RankSeconds(BaseModel):
    """Since the rank was ready; `bubble` is a part of `wait`."""

    compute: float
    communicate: float
    wait: float
    idle: float
    bubble: float


class RankLink(BaseModel):
    peer: int
    sent_bytes: int
    received_bytes: int


class ClusterRank(BaseModel):
    """`layers` are the first and the last one; null where the stage has none."""

    rank: int
    stage: int
    tensor: int
    node: str
    node_id: str
    pid: int
    device: str
    threads: int
    units: RankUnits
    layers: Annotated[list[int], Field(min_length=2, max_length=2)] | None
    weight_bytes: int
    kv_bytes: int
    load: RankLoad
    seconds: RankSeconds
    links: list[RankLink]
    heartbeat_age_s: float


class ClusterModel(BaseModel):
    """While a model is loading, its mesh, length and cache are not known. Medians are of the last 128 requests and the
    last 1,024 tokens; null before the first."""

    name: str
    state: Literal["loading", "ready", "failed"]
    mesh: MeshShape | None
    max_model_len: int | None
    kv: CacheBlocks | None
    running: int
    waiting: int
    requests_total: int
    requests_per_s: float
    prompt_tokens_per_s: float
    generation_tokens_per_s: float
    ttft_p50_ms: float | None
    itl_p50_ms: float | None
    recoveries: Recoveries
    bubble_s: float
    ranks: list[ClusterRank]


class ClusterSnapshot(BaseModel):
    """Rates are those of the last whole second; `time` is in Unix seconds, of years with four digits."""

    time: Annotated[float, Field(ge=0, lt=253402300800)]
    version: str
    uptime_s: float
    nodes: list[ClusterNode]
    models: list[ClusterModel]

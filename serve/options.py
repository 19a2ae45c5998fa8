"""Command-line options that several commands share, and the settings that they make."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import ssl

    from tinycluster.cluster.config import Settings

ConfigArgument = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a packaged one.")]
LocalOption = Annotated[bool, typer.Option("--local", help="Ranks are threads of this process; no Ray.")]
TensorOption = Annotated[int | None, typer.Option(metavar="N", help="Tensor-parallel ranks of each stage.")]
PipelineOption = Annotated[int | None, typer.Option(metavar="N", help="Pipeline stages.")]
WeightsOption = Annotated[str | None, typer.Option(metavar="F", help="stored, f32, bf16, f16, q8 or q4.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting, like limits.max_running=8.")
]

KeyFileOption = Annotated[
    Path | None, typer.Option("--api-key-file", help="A file with the server's key; by default $OPENAI_API_KEY.")
]
CaOption = Annotated[
    Path | None, typer.Option("--ca", metavar="FILE", help="Certificates to trust instead of the system's, for https.")
]


def api_key(file: Path | None) -> str | None:
    """The key in the file, or the one that OpenAI's clients take. Not an option's value: others see those in `ps`."""
    from tinycluster.engine.errors import ConfigError

    if file is None:
        given = os.environ.get("OPENAI_API_KEY", "")
        return _checked_key(given, "$OPENAI_API_KEY") if given else None
    try:
        return _checked_key(file.read_text(encoding="utf-8"), f"--api-key-file {file}")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not text"
        raise ConfigError(f"--api-key-file {file}: {reason}") from None


def _checked_key(text: str, place: str) -> str:
    from tinycluster.engine.errors import ConfigError

    key = text.strip()
    if not key or not key.isascii() or not key.isprintable():
        raise ConfigError(f"{place} holds no key")
    return key


def authorization(key: str | None) -> dict[str, str]:
    """The header that carries a key."""
    return {} if key is None else {"authorization": f"Bearer {key}"}


def trust(ca: Path | None) -> ssl.SSLContext | bool:
    """What httpx takes as `verify`. ConfigError where the file holds no certificate."""
    from tinycluster.engine.errors import ConfigError

    if ca is None:
        return True
    import ssl

    try:
        return ssl.create_default_context(cafile=ca)
    except ssl.SSLError:
        raise ConfigError(f"--ca {ca} holds no PEM certificate") from None
    except OSError as error:
        raise ConfigError(f"--ca {ca}: {error.strerror}") from None


def mesh_overrides(local: bool, tensor: int | None, pipeline: int | None, weights: str | None) -> dict[str, Any]:
    """Overrides for cluster/config.py's load_settings; what was not given is left to the file."""
    address = "local" if local else None
    given = {"mesh.tensor": tensor, "mesh.pipeline": pipeline, "weights": weights, "cluster.address": address}
    return {key: value for key, value in given.items() if value is not None}


def load(config: str, overrides: Mapping[str, Any], assignments: Sequence[str] | None = None) -> Settings:
    """The settings of CONFIG; `--set` comes last and wins. ConfigError."""
    from tinycluster.cluster.config import load_settings, parse_override

    return load_settings(find_config(config), {**overrides, **dict(map(parse_override, assignments or ()))})


def find_config(config: str) -> Path:
    """The file, or the packaged configuration of this name ("smollm2"). ConfigError names what is there."""
    from tinycluster.engine.errors import ConfigError

    path = Path(config).expanduser()
    if path.is_file():
        return path
    packaged = {file.stem: file for file in sorted(_packaged_folder().glob("*.yaml"))}
    if config in packaged:
        return packaged[config]
    raise ConfigError(f"there is no configuration {config}; packaged ones are {', '.join(packaged) or 'missing'}")


def _packaged_folder() -> Path:
    # configs/ holds data only, so it is no module: it lies beside this package's folder.
    return Path(__file__).resolve().parent.parent / "configs"

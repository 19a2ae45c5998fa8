"""Log files: who may read them, how large they grow, and what several writers make of one."""

from __future__ import annotations

import errno
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tinycluster.cluster.config import Settings
from tinycluster.cluster.log_file import LogFile, LogOptions, default_log_dir, log_options
from tinycluster.engine.errors import ConfigError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_only_the_owner_may_read_a_log_even_one_that_was_open_to_others(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "logs"
    LogOptions(folder).open("server.log").close()
    assert (mode(folder), mode(folder / "server.log")) == (0o700, 0o600)
    other = folder / "rank-0.log"
    other.write_text("")
    other.chmod(0o644)
    LogOptions(folder).open_rank(0).close()
    assert mode(other) == 0o600


def test_a_full_file_becomes_the_newest_of_the_old_ones_and_the_oldest_goes(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "a" / "x.log", max_bytes=100, num_kept=2)
    for number in range(10):
        file.write(f"{number}" * 49)
    file.close()
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["x.log", "x.log.1", "x.log.2"]
    kept = [(tmp_path / "a" / name).read_text() for name in ("x.log.2", "x.log.1", "x.log")]
    assert "".join(kept).split() == [f"{number}" * 49 for number in range(4, 10)]


def test_two_processes_on_one_file_lose_and_tear_no_line(tmp_path: Path) -> None:
    """Each has its own open file, as processes have."""
    path = tmp_path / "a" / "x.log"
    files = [LogFile(path, max_bytes=2_000, num_kept=100) for _ in range(3)]
    wanted = [[f"{writer} {number} {'x' * (number % 40)}" for number in range(300)] for writer in range(3)]

    def write(writer: int) -> None:
        for line in wanted[writer]:
            files[writer].write(line)

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(write, range(3)))
    for file in files:
        file.close()
    lines = [line for part in path.parent.iterdir() for line in part.read_text().splitlines()]
    assert sorted(lines) == sorted(line for own in wanted for line in own)
    # A writer that does not look meanwhile puts no more than a file's worth into one.
    num_bytes = sum(len(line) + 1 for line in lines)
    assert len(list(path.parent.iterdir())) >= num_bytes / (3 * 2_000) > 3


def test_a_full_disk_loses_lines_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, write = LogFile(tmp_path / "a" / "x.log"), os.write

    def full(fd: int, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "write", full)
    file.write("lost")
    monkeypatch.setattr(os, "write", write)
    file.write("kept")
    file.close()
    file.write("after the end")
    assert file.path.read_text() == "kept\n"


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"telemetry.log_dir: .* cannot be written: "):
        LogOptions(tmp_path / "file" / "logs").open("server.log")


def test_the_default_lies_in_the_users_state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_log_dir() == tmp_path / "tinycluster" / "logs"
    monkeypatch.setenv("XDG_STATE_HOME", "relative/is/ignored")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_log_dir() == tmp_path / "home" / ".local" / "state" / "tinycluster" / "logs"


def test_ranks_of_several_models_have_files_of_their_own(tmp_path: Path) -> None:
    def settings(*names: str) -> Settings:
        models = [{"name": name, "source": "x"} for name in names]
        return Settings.model_validate(
            {"models": models, "telemetry": {"log_dir": str(tmp_path), "log_format": "json"}}
        )

    assert log_options(settings("a"), "a") == LogOptions(tmp_path, True, "")
    models = ("a", "../b c", "a/b", "a_b", "a%2Fb")
    names = [log_options(settings(*models), name).open_rank(1).path.name for name in models]
    assert names[:2] == ["a-rank-1.log", "..%2Fb%20c-rank-1.log"]
    assert len(set(names)) == len(models)

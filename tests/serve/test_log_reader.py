"""`tinycluster logs`: the last lines, those that follow, and those of one rank."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import pytest
from typer.testing import CliRunner

from tinycluster.cluster.log_file import LogFile, LogOptions, rank_prefix
from tinycluster.cluster.log_lines import console_line, json_line
from tinycluster.engine.errors import ConfigError
from tinycluster.serve.cli import app
from tinycluster.serve.log_reader import follow, is_at_least, log_path, print_log


@pytest.mark.parametrize("line_of", [console_line, json_line])
def test_lines_are_chosen_by_level_in_both_forms(line_of: Callable[..., str], tmp_path: Path) -> None:
    levels = ["INFO", "WARNING", "ERROR", "INFO"]
    lines = [line_of(float(number), level, "x", "ERROR said", {}) for number, level in enumerate(levels)]
    path = tmp_path / "server.log"
    path.write_text("\n".join(lines) + "\n")
    for level, kept in (("debug", [0, 1, 2, 3]), ("warning", [1, 2]), ("error", [2])):
        out = io.StringIO()
        print_log(path, out, num_lines=100, level=level, follows=False)
        assert out.getvalue().splitlines() == [lines[number] for number in kept]
    out = io.StringIO()
    print_log(path, out, num_lines=2, level="info", follows=False)
    assert out.getvalue().splitlines() == lines[2:]
    with pytest.raises(ConfigError, match="--level must be one of debug, info, warning, error, critical, got loud"):
        print_log(path, out, num_lines=2, level="loud", follows=False)


def test_what_is_no_line_of_ours_is_shown(tmp_path: Path) -> None:
    assert is_at_least("something else", "critical")
    assert is_at_least("{broken", "critical")


def test_following_goes_on_in_the_file_that_takes_the_place_of_a_full_one(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "a" / "x.log", max_bytes=40, num_kept=9)
    log.write("first")
    lines = follow(log.path, wait=lambda _: None)
    assert [next(lines), next(lines)] == ["first", None]
    for number in range(12):
        log.write(f"line {number:02}")
        assert next(lines) == f"line {number:02}"
        assert next(lines) is None
    assert len(list((tmp_path / "a").iterdir())) > 2
    log.close()


def test_half_a_line_waits_for_its_other_half(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_text("one\ntw")
    lines = follow(path, wait=lambda _: None)
    assert [next(lines), next(lines)] == ["one", None]
    with path.open("a") as more:
        more.write("o\n")
    assert next(lines) == "two"


def test_the_log_of_a_rank_is_found_and_a_missing_or_ambiguous_one_is_a_sentence(tmp_path: Path) -> None:
    for name in ("server.log", "rank-0.log", "a-rank-1.log", "org%2Fb-rank-1.log", "rank-1.log", "rank-10.log"):
        (tmp_path / name).write_text("")
    assert log_path(tmp_path, None).name == "server.log"
    assert log_path(tmp_path, 0).name == "rank-0.log"
    with pytest.raises(ConfigError, match=r"of rank 1 of several models: '', a, org/b; choose one with --model"):
        log_path(tmp_path, 1)
    chosen = {model: log_path(tmp_path, 1, model).name for model in ("", "a", "org/b")}
    assert chosen == {"": "rank-1.log", "a": "a-rank-1.log", "org/b": "org%2Fb-rank-1.log"}
    with pytest.raises(ConfigError, match="has no log of rank 1 of org_b"):
        log_path(tmp_path, 1, "org_b")
    with pytest.raises(ConfigError, match="--model a needs --rank"):
        log_path(tmp_path, None, "a")
    with pytest.raises(ConfigError, match="has no log of rank 2"):
        log_path(tmp_path, 2)
    with pytest.raises(ConfigError, match="has no log of the server"):
        log_path(tmp_path / "nowhere", None)


def test_the_command_reads_the_log_of_a_models_rank(tmp_path: Path) -> None:
    LogOptions(tmp_path, False, rank_prefix("org/b")).open_rank(1).write("of org/b")
    LogOptions(tmp_path, False, rank_prefix("a")).open_rank(1).write("of a")
    arguments = ["logs", "--dir", str(tmp_path), "--rank", "1"]
    outcome = CliRunner().invoke(app, [*arguments, "--model", "org/b"])
    assert (outcome.exit_code, outcome.stdout) == (0, "of org/b\n")
    assert isinstance(CliRunner().invoke(app, arguments).exception, ConfigError)


def test_a_log_that_may_not_be_read_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused by the file itself: whoever runs the tests may be one who may read everything."""
    log = LogFile(tmp_path / "a" / "x.log", max_bytes=10)
    log.write("the first")
    lines = follow(log.path, wait=lambda _: None)
    assert [next(lines), next(lines)] == ["the first", None]
    log.write("the second")
    log.close()

    def refuse(*_: object, **__: object) -> TextIO:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ConfigError, match=r"x\.log: Permission denied$"):
        next(lines)
    with pytest.raises(ConfigError, match=r"x\.log: Permission denied$"):
        print_log(log.path, io.StringIO(), num_lines=1, level="debug", follows=False)

"""What a line of a log looks like, whatever it has to say."""

from __future__ import annotations

import json
import logging
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinycluster.cluster.log_file import LogFile
from tinycluster.cluster.log_lines import LineHandler, WarningsToStderr, console_line, json_line, logged_to, rank_logger

HEAD = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO  requests")
NASTY = "\x1b[31mred\r\n2026-01-01 INFO forged\x00\u202eevil\u2028line\x85next"


def is_safe(line: str) -> bool:
    return not any(unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp", "Cs") for char in line)


@given(st.text(), st.text())
def test_a_line_is_one_line_and_begins_with_ours(message: str, value: str) -> None:
    line = console_line(1_700_000_000.5, "INFO", "requests", message, {"model": value})
    assert is_safe(line)
    assert HEAD.match(line)
    told = json_line(1_700_000_000.5, "INFO", "requests", message, {"model": value})
    assert is_safe(told)
    assert told.startswith('{"time": "2023-11-14T22:13:20.500Z", "level": "info"')
    read = json.loads(told)
    assert (read.get("message", ""), read["model"]) == (message, value)


def test_values_are_read_back_by_people() -> None:
    fields = {"id": "req_1", "key": None, "ttft_ms": 12.5, "count": 3, "name": "two words", "quoted": 'a"b'}
    line = console_line(0.0, "INFO", "requests", "", fields)
    assert line == (
        '1970-01-01T00:00:00.000Z INFO  requests id=req_1 key=- ttft_ms=12.5 count=3 name="two words" quoted="a\\"b"'
    )


def test_records_of_ours_and_warnings_of_others_are_written(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "a" / "x.log")
    with logged_to(file, is_json=True):
        logging.getLogger("tinycluster.cluster.driver").info("said %s", NASTY)
        logging.getLogger("tinyclusters").info("a stranger")
        logging.getLogger("someone.else").info("chatter")
        logging.getLogger("someone.else").warning("care")
        try:
            raise ValueError(NASTY)
        except ValueError:
            logging.getLogger("tinycluster.serve").exception("failed")
    logging.getLogger("tinycluster.cluster.driver").info("after the end")
    lines = [json.loads(line) for line in file.path.read_text().splitlines()]
    assert [(line["logger"], line["level"]) for line in lines] == [
        ("cluster.driver", "info"),
        ("someone.else", "warning"),
        ("serve", "error"),
    ]
    assert lines[0]["message"] == f"said {NASTY}"
    assert lines[2]["message"].startswith("failed\nTraceback")


def test_no_line_on_stderr_begins_with_what_an_error_quotes() -> None:
    try:
        raise ValueError(NASTY)
    except ValueError as error:
        record = logging.LogRecord(
            "tinycluster", logging.ERROR, "", 0, "failed: %s", (NASTY,), (type(error), error, None)
        )
    lines = WarningsToStderr().format(record).split("\n")
    assert lines[0].startswith("failed: ")
    assert all(line.startswith("    ") for line in lines[1:])
    assert all(is_safe(line) for line in lines)


def test_a_rank_that_is_a_thread_has_a_log_of_its_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, other = LogFile(tmp_path / "rank-0.log"), LogFile(tmp_path / "rank-1.log")
    rank_logger(0, file, is_json=False).info("rank %d is ready", 0)
    assert file.path.read_text().endswith(" INFO  rank-0 rank 0 is ready\n")
    assert other.path.read_text() == ""
    rank_logger(0, None, is_json=False).error("heard by the process")
    assert [record.message for record in caplog.records] == ["rank 0 is ready", "heard by the process"]


def test_a_record_that_cannot_be_formatted_hurts_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    handler = LineHandler(LogFile(tmp_path / "x.log"), is_json=False)
    handler.emit(logging.LogRecord("tinycluster", logging.INFO, "", 0, "%d", ("no number",), None))

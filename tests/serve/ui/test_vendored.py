"""Files of other projects are what their record says, unchanged, and their licences lie beside them."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from tinycluster.serve.ui_routes import FOLDER

FOLDERS = [FOLDER / "vendor", Path(__file__).parent / "vendor"]
LICENCES = {"MIT", "BSD-2-Clause", "BSD-3-Clause", "MPL-2.0"}
MAX_FILE_BYTES = 1_000_000


class Vendored(NamedTuple):
    sha256: str
    file: str
    package: str
    version: str
    licence: str
    source: str


def recorded(text: str) -> list[Vendored]:
    rows = [line.split(" | ") for line in text.splitlines() if " | " in line]
    return [Vendored(*row) for row in rows if re.fullmatch("[0-9a-f]{64}", row[0])]


def problems(folder: Path, files: list[Vendored]) -> list[str]:
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {"VENDORED"}
    named = {file.file for file in files}
    found = [f"{name} is not recorded" for name in there - named] + [f"{name} is missing" for name in named - there]
    for file in files:
        if file.file not in there:
            continue
        content = (folder / file.file).read_bytes()
        if hashlib.sha256(content).hexdigest() != file.sha256:
            found.append(f"{file.file} has changed")
        if len(content) >= MAX_FILE_BYTES:
            found.append(f"{file.file} is too large")
        if file.licence not in LICENCES:
            found.append(f"{file.file}: {file.licence} is not a licence that we take")
    packages = {file.package for file in files}
    licensed = {file.package for file in files if "LICENSE" in file.file}
    return found + [f"{package} has no licence" for package in packages - licensed]


@pytest.mark.parametrize("folder", FOLDERS, ids=["serve", "tests"])
def test_vendored_files_are_what_their_record_says(folder: Path) -> None:
    files = recorded((folder / "VENDORED").read_text(encoding="utf-8"))
    assert files
    assert problems(folder, files) == []


def test_a_changed_a_missing_and_an_unrecorded_file_are_seen(tmp_path: Path) -> None:
    (tmp_path / "a.js").write_text("changed")
    (tmp_path / "b.js").write_text("unrecorded")
    told = "\n".join(f"{'0' * 64} | {name} | a | 1 | WTFPL | dist/{name}" for name in ("a.js", "c.js"))
    found = problems(tmp_path, recorded(told))
    assert {problem.split()[0] for problem in found} == {"a.js", "a.js:", "b.js", "c.js", "a"}


def test_records_name_no_address() -> None:
    for folder in FOLDERS:
        assert "://" not in (folder / "VENDORED").read_text(encoding="utf-8")

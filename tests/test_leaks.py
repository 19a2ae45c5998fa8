"""The check at the end of the session (`leaves_nothing_behind` in conftest.py) sees what a test could leave behind."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from tests.leaks import MARK, Places, new_files, processes, remaining_processes

linux_only = pytest.mark.xfail(not Path("/proc/self/environ").exists(), reason="processes are read from /proc")
WAIT_FOR_INPUT = "import sys; print('started', flush=True); sys.stdin.read()"


@pytest.fixture
def places(tmp_path: Path) -> Places:
    folders = [tmp_path / name for name in ("repository", "home", "shm")]
    for folder in folders:
        folder.mkdir()
    return Places(*folders)


def test_a_file_in_the_repository_the_home_or_shared_memory_is_seen(places: Places) -> None:
    before = places.files()
    left = [places.repository / "tests" / "result.json", places.home / ".tinycluster" / "state"]
    left.append(places.shared_memory / "tinycluster-1234-0")
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    assert new_files(places, before) == sorted(left)


def test_caches_sources_and_what_was_there_are_no_leaks(places: Places) -> None:
    (places.home / "notes").write_text("x")
    before = places.files()
    (places.repository / "__pycache__").mkdir()
    for path in (
        places.repository / "__pycache__" / "a.pyc",
        places.repository / "engine.py",
        places.shared_memory / "someone-elses-segment",
    ):
        path.write_text("x")
    assert new_files(places, before) == []


@linux_only
def test_a_child_process_is_seen_until_it_ends() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", WAIT_FOR_INPUT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={}
    )
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        assert "sys.stdin.read" in processes("no such mark")[child.pid]
    assert child.pid not in processes("no such mark")


@linux_only
def test_an_orphan_is_seen_by_its_mark_when_its_parent_is_gone() -> None:
    mark = uuid.uuid4().hex
    before = processes(mark)  # children that other tests of this process keep
    start_orphan = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {WAIT_FOR_INPUT!r}])"
    parent = subprocess.Popen(
        [sys.executable, "-c", start_orphan],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, MARK: mark},
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    parent.stdout.readline()  # the orphan runs
    parent.wait()
    (orphan,) = processes(mark).keys() - before.keys()
    assert orphan != parent.pid
    assert remaining_processes(mark, timeout_s=0).keys() - before.keys() == {orphan}
    parent.stdin.close()
    assert parent.stdout.read() == b""  # the orphan has ended
    parent.stdout.close()
    # Its output ends before it does.
    while orphan in processes(mark):
        pass

"""SQLite's file full, locked, read-only, damaged and gone: a sentence, never a success, and it works again later."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tinycluster.engine.errors import ConfigError
from tinycluster.serve.errors import reply_for
from tinycluster.serve.storage import sqlite, sqlite_file
from tinycluster.serve.storage.database import Database
from tinycluster.serve.storage.errors import StorageError
from tinycluster.serve.storage.records import NewMessage
from tinycluster.serve.storage.storage import Storage, open_storage

NOBODY = 65534


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "conversations.db"


@pytest.fixture
def storage(file: Path) -> Iterator[Storage]:
    with closing(open_storage(f"sqlite:///{file}")) as storage:
        yield storage


async def attempt(storage: Storage, title: str, num_chars: int = 0) -> str | StorageError:
    try:
        items = [NewMessage("user", "x" * num_chars)]
        return (await storage.conversations.create("ann", title=title, items=items)).title
    except StorageError as error:
        return error


def write(storage: Storage, title: str) -> None:
    assert asyncio.run(attempt(storage, title)) == title


def refused(storage: Storage, reason: str, title: str = "lost") -> None:
    error = asyncio.run(attempt(storage, title))
    assert isinstance(error, StorageError)
    assert str(error) == f"The server's storage does not work: {reason}"
    reply = reply_for(error)
    assert (reply.status, "retry-after" in reply.headers) == (503, True)


def titles(storage: Storage) -> set[str]:
    listed = asyncio.run(storage.conversations.list("ann", limit=1000))
    return {conversation.title for conversation in listed.conversations}


def is_whole(file: Path) -> bool:
    with closing(sqlite3.connect(file)) as connection:
        return connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_full_disk_refuses_what_does_not_fit_and_keeps_what_was_acknowledged(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_storage(f"sqlite:///{file}").close()
    monkeypatch.setattr(sqlite_file, "PRAGMAS", (*sqlite_file.PRAGMAS, "max_page_count = 60"))
    with closing(open_storage(f"sqlite:///{file}")) as storage:

        async def fill() -> list[str | StorageError]:
            return await asyncio.gather(*(attempt(storage, f"t{number}", 9000) for number in range(40)))

        # As many as fit one by one, then many at once, of which the batch decides together.
        written: set[str] = set()
        while isinstance(title := asyncio.run(attempt(storage, f"alone{len(written)}", 9000)), str):
            written.add(title)
        assert len(written) > 3
        outcomes = asyncio.run(fill())
        assert all("disk is full" in str(outcome) for outcome in outcomes if not isinstance(outcome, str))
        written |= {outcome for outcome in outcomes if isinstance(outcome, str)}
        refused(storage, "its disk is full", "x" * 50_000)
        assert titles(storage) == written
        monkeypatch.undo()
        write(storage, "after")
        assert titles(storage) == {*written, "after"}
    assert is_whole(file)


def test_the_log_has_the_cause_and_nothing_that_users_wrote(
    storage: Storage, file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    storage.close()
    monkeypatch.setattr(sqlite_file, "PRAGMAS", (*sqlite_file.PRAGMAS, "max_page_count = 30"))
    with closing(open_storage(f"sqlite:///{file}")) as full:
        refused(full, "its disk is full", "canary" * 50_000)
    assert "database or disk is full" in caplog.text
    assert "canary" not in caplog.text


def test_a_disk_that_fails_while_writing_loses_nothing_acknowledged(storage: Storage, file: Path) -> None:
    write(storage, "before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(path.stat().st_size for path in file.parent.iterdir()), hard))
    try:
        # Python ignores the signal, so writes fail with an error.
        outcome = asyncio.run(attempt(storage, "lost", 500_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert isinstance(outcome, StorageError)
    write(storage, "after")
    assert titles(storage) == {"before", "after"}
    assert is_whole(file)


HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
input()
"""


@contextmanager
def held(file: Path) -> Iterator[None]:
    """Another process is writing, and does not come to an end."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", HOLD, str(file)], stdin=pipe, stdout=pipe, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        yield
        child.communicate("\n")


def test_a_database_that_another_process_holds_refuses_writes_and_is_read(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "BUSY_TIMEOUT_S", 0.05)
    with closing(open_storage(f"sqlite:///{file}")) as storage:
        write(storage, "before")
        with held(file):
            refused(storage, "another process holds it")
            assert titles(storage) == {"before"}
            with pytest.raises(ConfigError, match=r"conversations\.db cannot be used as the database: .*locked"):
                open_storage(f"sqlite:///{file}")
        write(storage, "after")
        assert titles(storage) == {"before", "after"}


@pytest.mark.parametrize("has_new_file", [False, True])
def test_a_file_that_was_taken_away_takes_nothing_more_and_works_when_it_is_back(
    storage: Storage, file: Path, has_new_file: bool
) -> None:
    write(storage, "before")
    away = file.with_name("away.db")
    file.rename(away)
    refused(storage, "its file is gone")
    with pytest.raises(StorageError, match="its file is gone"):
        titles(storage)
    assert not file.exists()
    if has_new_file:
        shutil.copy(away, file)
        away.unlink()
    else:
        away.rename(file)
    assert titles(storage) == {"before"}
    write(storage, "after")
    assert titles(storage) == {"before", "after"}


def test_a_file_that_is_replaced_during_a_write_has_not_taken_it(storage: Storage, file: Path) -> None:
    write(storage, "before")

    def replaced_meanwhile(_connection: object) -> None:
        copy = file.with_name("copy.db")
        shutil.copy(file, copy)
        copy.rename(file)

    async def replace() -> None:
        await storage.database.write(replaced_meanwhile)

    with pytest.raises(StorageError, match="its file is gone"):
        asyncio.run(replace())
    write(storage, "after")
    assert "after" in titles(storage)


def test_a_file_that_became_something_else_is_an_error_of_storage(storage: Storage, file: Path) -> None:
    write(storage, "before")
    for path in file.parent.iterdir():
        path.unlink()
    file.write_bytes(b"no database at all " * 1000)
    outcome = asyncio.run(attempt(storage, "lost"))
    assert isinstance(outcome, StorageError)
    with pytest.raises(StorageError):
        titles(storage)


@contextmanager
def unprivileged() -> Iterator[None]:
    """Root may write everywhere. Nobody else's modules can be imported meanwhile."""
    if os.geteuid() == 0:
        os.seteuid(NOBODY)
        try:
            yield
        finally:
            os.seteuid(0)
    else:
        yield


def test_a_file_that_may_only_be_read_is_refused_at_the_start_and_later() -> None:
    with tempfile.TemporaryDirectory(prefix="tc") as folder:
        Path(folder).chmod(0o777)
        file = Path(folder) / "conversations.db"
        with closing(open_storage(f"sqlite:///{file}")) as storage:
            write(storage, "before")
            for path in Path(folder).iterdir():
                path.chmod(0o444)
            refusal = r"conversations\.db cannot be used as the database: .*readonly"
            with unprivileged(), pytest.raises(ConfigError, match=refusal):
                open_storage(f"sqlite:///{file}")
        with closing(Storage(Database(f"sqlite:///{file}"))) as storage:
            with unprivileged():
                refused(storage, "it cannot be written to")
                assert titles(storage) == {"before"}
            for path in Path(folder).iterdir():
                path.chmod(0o644)
            # The readers' connections still know it as read-only, and are closed by the first write that hears of it.
            asyncio.run(attempt(storage, "before"))
            write(storage, "after")
            assert titles(storage) == {"before", "after"}


def test_what_is_no_database_is_refused_at_the_start_with_its_name(file: Path) -> None:
    file.write_bytes(b"no database at all " * 1000)
    with pytest.raises(ConfigError, match=r"conversations\.db cannot be used as the database: file is not a database"):
        open_storage(f"sqlite:///{file}")
    with pytest.raises(ConfigError, match=r"cannot be used as the database"):
        open_storage(f"sqlite:///{file.parent}")
    with pytest.raises(ConfigError, match=r"cannot be used as the database: No such file or directory"):
        open_storage(f"sqlite:///{file.parent / 'nowhere' / 'x.db'}")


def test_a_damaged_database_is_refused_at_the_start_with_its_name(storage: Storage, file: Path) -> None:
    for number in range(20):
        write(storage, f"t{number}")
    storage.close()
    content = bytearray(file.read_bytes())
    for place in range(2 * 4096, len(content), 4096):
        content[place : place + 64] = b"\xff" * 64
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"conversations\.db.* (damaged|malformed)"):
        open_storage(f"sqlite:///{file}")


@pytest.mark.parametrize("is_checked", [True, False])
def test_a_server_writes_on_while_another_looks_for_damage(
    storage: Storage, file: Path, monkeypatch: pytest.MonkeyPatch, is_checked: bool
) -> None:
    write(storage, "before")
    check = sqlite._check_whole
    checked: list[Path] = []

    def write_meanwhile(driver: sqlite3.Connection, path: Path) -> None:
        write(storage, "meanwhile")
        check(driver, path)
        checked.append(path)

    monkeypatch.setattr(sqlite, "_check_whole", write_meanwhile)
    with closing(open_storage(f"sqlite:///{file}", is_checked=is_checked)) as other:
        assert checked == [file] * is_checked
        assert titles(other) == ({"before", "meanwhile"} if is_checked else {"before"})


def test_two_servers_share_one_file(storage: Storage, file: Path) -> None:
    with closing(open_storage(f"sqlite:///{file}")) as other:

        async def write_all() -> list[str | StorageError]:
            pairs = ((server, f"{name}{n}") for n in range(40) for name, server in (("a", storage), ("b", other)))
            return await asyncio.gather(*(attempt(server, title) for server, title in pairs))

        written = asyncio.run(write_all())
        assert titles(storage) == titles(other) == {*map(str, written)}
        assert len({*map(str, written)}) == 80
        assert all(isinstance(title, str) for title in written)


def test_nothing_is_taken_after_the_end_and_what_waited_is_stored(storage: Storage, file: Path) -> None:
    async def close_meanwhile() -> list[str | StorageError]:
        waiting = [asyncio.ensure_future(attempt(storage, f"t{number}")) for number in range(300)]
        await asyncio.sleep(0)
        await asyncio.to_thread(storage.close)
        return await asyncio.gather(*waiting)

    assert len(asyncio.run(close_meanwhile())) == 300
    storage.close()
    with pytest.raises(Exception, match="the server is stopping"):
        titles(storage)
    with closing(open_storage(f"sqlite:///{file}")) as again:
        assert len(titles(again)) == 300

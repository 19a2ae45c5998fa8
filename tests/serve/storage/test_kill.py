"""kill -9 at any moment: nothing acknowledged is lost, nothing is there twice, and the file is whole.

`--storage-kill-cycles 1000` kills a thousand times.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.serve.storage.killed_writer import NUM_CHECKPOINTS, PIECE
from tinycluster.serve.storage.records import Message
from tinycluster.serve.storage.servers import Presence
from tinycluster.serve.storage.storage import Storage, open_storage

MOST_LINES = 60
"""A writer is killed after it has said at most so many, at a random moment within the next ones."""


class Acknowledged:
    """What was said by writers before they were killed, by the id of the user's message."""

    def __init__(self) -> None:
        self.begun: set[str] = set()
        self.kept: dict[str, int] = {}
        self.ended: set[str] = set()

    def hear(self, line: str) -> None:
        word, message_id, *rest = line.split()
        if word == "begun":
            self.begun.add(message_id)
        elif word == "kept":
            self.kept[message_id] = int(rest[0])
        else:
            assert word == "ended"
            self.ended.add(message_id)


@contextmanager
def writers(url: str) -> Iterator[subprocess.Popen[str]]:
    """A process that starts one writer after the other."""
    root = Path(__file__).parent.parent.parent.parent
    command = [sys.executable, "-m", "tests.serve.storage.killed_writer", url]
    pipe, environment = subprocess.PIPE, {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=root, env=environment) as process:
        yield process


def killed(process: subprocess.Popen[str], cycle: str, num_lines: int) -> Iterator[str]:
    """The lines of a writer that is killed when it has said so many; what it says meanwhile counts, too."""
    assert process.stdin is not None
    assert process.stdout is not None
    print(cycle, file=process.stdin, flush=True)
    pid: int | None = None
    num_heard = 0
    while (line := process.stdout.readline()) != "dead\n":
        assert line, "the process that starts writers has ended"
        if line.startswith("pid "):
            pid = int(line.removeprefix("pid "))
        else:
            num_heard += 1
            yield line
        if pid is not None and num_heard >= num_lines:
            os.kill(pid, signal.SIGKILL)
            pid = None
            num_lines = sys.maxsize


async def all_messages(storage: Storage) -> list[Message]:
    listed = await storage.conversations.list("ann", limit=100_000)
    found = [await storage.conversations.with_messages("ann", each.id) for each in listed.conversations]
    return [message for _, tree in filter(None, found) for message in tree]


def check(heard: Acknowledged, stored: list[Message]) -> None:
    ids = [message.id for message in stored]
    assert len(ids) == len(set(ids)), "a message is there twice"
    users = {message.id: message for message in stored if message.role == "user"}
    answers = {message.parent_id: message for message in stored if message.role == "assistant"}
    assert len(answers) == len(users) == len(stored) // 2, "a message without its answer, or with two"
    assert heard.begun <= users.keys(), "an acknowledged message is lost"
    for message_id in users:
        answer = answers[message_id]
        assert users[message_id].text == f"text of {message_id}"
        assert len(answer.text) >= heard.kept.get(message_id, 0), "an acknowledged checkpoint is lost"
        if message_id in heard.ended:
            assert (answer.state, answer.text, answer.finish_reason) == ("complete", PIECE * 3, "stop")
        else:
            # It may have been committed and not said any more.
            assert answer.text == PIECE * (len(answer.text) // len(PIECE))
            assert answer.state in ("complete", "interrupted")
            assert (answer.state == "complete") == (len(answer.text) > len(PIECE) * NUM_CHECKPOINTS)


def test_whatever_was_acknowledged_survives_kills(tmp_path: Path, storage_kill_cycles: int) -> None:
    file = tmp_path / "conversations.db"
    url, heard, chance = f"sqlite:///{file}", Acknowledged(), random.Random(5)
    with writers(url) as process:
        for cycle in range(storage_kill_cycles):
            for line in killed(process, f"c{cycle}", chance.randrange(MOST_LINES)):
                heard.hear(line)
            with closing(sqlite3.connect(file)) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    with closing(open_storage(url)) as storage:
        Presence(storage.database, storage.server_id).beat()
        stored = asyncio.run(all_messages(storage))
        check(heard, stored)
        print(f"{storage_kill_cycles} kills, {len(heard.begun)} turns acknowledged, {len(stored) // 2} stored")


def test_a_loss_would_be_seen() -> None:
    heard = Acknowledged()
    heard.hear("begun c0-0-0")
    with pytest.raises(AssertionError, match="lost"):
        check(heard, [])


DIE_AT = """
import os, signal, sys
from sqlalchemy import Engine, event
from tinycluster.serve.storage.database import Database
url, numbers = sys.argv[1], [int(number) for number in sys.argv[2:]]
for number in numbers:
    if os.fork() == 0:
        statements = iter(range(number))
        def die(*_):
            if next(statements, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
        event.listen(Engine, "before_cursor_execute", die)
        Database(url.format(number)).migrate()
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_a_migration_that_is_killed_midway_has_not_begun_or_is_done(tmp_path: Path) -> None:
    """Killed at the n-th statement, for every n: the next start finds all tables or makes them."""
    url = f"sqlite:///{tmp_path}/{{}}.db"
    numbers = range(0, 49, 8)
    command = [sys.executable, "-c", DIE_AT, url, *map(str, numbers)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    assert ended[0] == "-9"
    assert ended[-1] == "0", "the last number must lie beyond the last statement"
    for number in numbers:
        with closing(open_storage(url.format(number))) as storage:
            assert asyncio.run(storage.conversations.create("ann", title="T")).title == "T"

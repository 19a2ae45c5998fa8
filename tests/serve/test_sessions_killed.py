"""A server that is killed loses nothing that it has acknowledged, and doubles nothing that is asked for again."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.serve.killed_clients import Client, Journal, check, wait_until
from tests.serve.server_process import own_environment

ROOT = Path(__file__).parent.parent.parent
NUM_CLIENTS = 4
MAX_LIFE_S = 0.5
SEED = 5


class Servers:
    """One after another over the same database."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = 0

    def start(self) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print("start", file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        assert line, "the server has not started"
        started = json.loads(line)
        self.pid = started["pid"]
        return str(started["url"])

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


@pytest.fixture
def servers(database: Path) -> Iterator[Servers]:
    with ExitStack() as opened:
        process = opened.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "tests.serve.killed_server", f"sqlite:///{database}"],
                cwd=ROOT,
                env=opened.enter_context(own_environment()),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        yield Servers(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 0


@pytest.mark.timeout(7200)
def test_a_server_that_is_killed_loses_and_doubles_nothing(
    servers: Servers, database: Path, kill_cycles: int, capsys: pytest.CaptureFixture[str]
) -> None:
    moments, journal = random.Random(SEED), Journal()
    clients = [Client(f"client{number}", journal, SEED + number) for number in range(NUM_CLIENTS)]
    url = servers.start()
    for client in clients:
        client.start()
    for cycle in range(kill_cycles):
        for client in clients:
            client.serve_from(url)
        # Not a wait for anything: the moment is what is tried.
        threading.Event().wait(moments.uniform(0.02, MAX_LIFE_S))
        servers.kill()
        for client in clients:
            client.serve_from(None)
        url = servers.start()
        assert [client.failures for client in clients] == [[]] * NUM_CLIENTS
        if (cycle + 1) % 100 == 0:
            with capsys.disabled():
                num_done = sum(said.done is not None for said in list(journal.said.values()))
                print(f"\n{cycle + 1} kills: {len(journal.said)} messages, {num_done} answers")
    for client in clients:
        client.serve_from(url)
    before = len(journal.said)

    def has_gone_on() -> bool:
        """However few answers there is time for between the kills, the last server ends some."""
        return len(journal.said) > before and num_complete(journal) > kill_cycles

    wait_until(lambda: has_gone_on() or any(client.failures for client in clients))
    for client in clients:
        client.leave()
    for client in clients:
        client.join()
        assert client.failures == []
    servers.kill()
    num_found = check(servers.start(), clients, journal)
    assert num_found >= sum(said.answer_id is not None for said in journal.said.values())
    states = [said.done["state"] for said in journal.said.values() if said.done is not None]
    assert journal.num_broken >= kill_cycles / 2
    if kill_cycles >= 50:
        assert states.count("interrupted") > 0
        assert journal.num_resumed > 0
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


def num_complete(journal: Journal) -> int:
    done = [said.done for said in list(journal.said.values())]
    return sum(each is not None and each["state"] == "complete" for each in done)


def test_the_check_sees_what_is_lost_doubled_or_changed(servers: Servers, database: Path) -> None:
    journal = Journal()
    client = Client("client", journal, SEED)
    client.serve_from(servers.start())
    client.start()
    wait_until(lambda: sum(said.done is not None for said in list(journal.said.values())) > 3)
    client.leave()
    client.join()
    assert client.failures == []
    servers.kill()
    url = servers.start()
    assert check(url, [client], journal) >= 4
    said = next(each for each in journal.said.values() if each.done is not None)
    changes = [
        ("UPDATE messages SET text = substr(text, 1, 1) WHERE id = ?", said.answer_id),
        ("UPDATE messages SET state = 'streaming' WHERE id = ?", said.answer_id),
        ("DELETE FROM messages WHERE id = ?", said.answer_id),
        ("DELETE FROM messages WHERE id = ?", said.message_id),
        ("DELETE FROM conversations WHERE id = ?", said.session_id),
    ]
    for change, key in changes:
        with closing(sqlite3.connect(database, isolation_level=None)) as connection:
            connection.execute(change, (key,))
        with pytest.raises(AssertionError):
            check(url, [client], journal)

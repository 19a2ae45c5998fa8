"""Which servers live, and the end of what the dead ones left: their open answers are interrupted, for nobody goes on.

A server is a row with the process that it is. On the same machine the process is looked up: it is gone when its id is
free or has been given to a later process. On others a row counts until its heartbeat is 30 seconds old, by clocks that
are assumed to agree within that, and only a server that has beaten that long itself may say so: after an outage of the
database every heartbeat is old.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from tinycluster.engine.errors import UnavailableError
from tinycluster.serve.storage.database import Database
from tinycluster.serve.storage.responses import fail_those_of
from tinycluster.serve.storage.tables import IS_IN_PROGRESS, IS_OPEN, messages, responses, servers

log = logging.getLogger(__name__)

BEAT_PERIOD_S = 10.0
MAX_HEARTBEAT_AGE_MS = 30_000
MAX_PAUSE_MS = 20_000
"""Between two beats of this server. A longer one is an outage, and so may be that of the others, whose last beats are
a period older still."""
WHY_FAILED = "The server stopped before the response was complete"

BEAT = update(servers).where(servers.c.id == bindparam("server_id")).values(heartbeat_ms=bindparam("now_ms"))
REGISTER = insert(servers)
ALL = select(servers.c.id, servers.c.host, servers.c.pid, servers.c.process_start, servers.c.heartbeat_ms)
# One that beats at this moment after all is not forgotten.
FORGET = delete(servers).where(
    servers.c.id == bindparam("server_id"), servers.c.heartbeat_ms == bindparam("last_heartbeat_ms")
)
# Written as the indexes of what is open are: values that are bound would read the whole tables.
ORPHANED = IS_OPEN & messages.c.server_id.not_in(select(servers.c.id))
INTERRUPT = update(messages).where(ORPHANED).values(state="interrupted", updated_ms=bindparam("now_ms"))
ORPHANED_RESPONSES = (
    select(responses.c.server_id).where(IS_IN_PROGRESS, responses.c.server_id.not_in(select(servers.c.id))).distinct()
)


@dataclass(frozen=True, slots=True)
class Place:
    """A process, so that another one on its machine can tell whether it lives. `host` names the machine, its boot and
    its space of process ids; `start` counts the kernel's ticks since the boot, 0 where it does not tell."""

    host: str
    pid: int
    start: int


def this_process() -> Place:
    pid = os.getpid()
    start = start_of(pid)
    if start is None:
        return Place(socket.gethostname(), pid, 0)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return Place(f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}", pid, start)


def start_of(pid: int) -> int | None:
    """When a process began, in ticks since the boot. None where there is no such process, or only its remains."""
    try:
        state, *rest = (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
    except OSError:
        return None
    return None if state in "ZX" else int(rest[18])


def is_gone(there: Place, heartbeat_ms: int, here: Place, now_ms: int, start_of: Callable[[int], int | None]) -> bool:
    """Whether a server's process has ended, as far as a process `here` can tell."""
    if there.host == here.host and here.start:
        return start_of(there.pid) != there.start
    return heartbeat_ms < now_ms - MAX_HEARTBEAT_AGE_MS


class Presence:
    """This server among the others. `clock` gives Unix seconds."""

    def __init__(
        self,
        database: Database,
        server_id: str,
        place: Place | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database, self._server_id, self._clock = database, server_id, clock
        self._place = place or this_process()
        self._first_ms: int | None = None
        self._last_ms = 0

    def beat(self) -> int:
        """Say that this server lives, and interrupt what dead ones left. How many answers that were; StorageError."""
        num_interrupted, self._first_ms, self._last_ms = self._database.write_now(self._beat)
        return num_interrupted

    def leave(self) -> None:
        """The last words of a server that ends: what it has not finished is interrupted."""

        def leave(connection: Connection) -> int:
            connection.execute(delete(servers).where(servers.c.id == self._server_id))
            return _interrupt_orphans(connection, self._now_ms())

        self._database.write_now(leave)

    def _beat(self, connection: Connection) -> tuple[int, int, int]:
        """How many were interrupted, and the times of the first beat since an outage and of this one."""
        now_ms = self._now_ms()
        first_ms = self._first_ms
        if first_ms is None or not 0 <= now_ms - self._last_ms <= MAX_PAUSE_MS:
            first_ms = now_ms
        if connection.execute(BEAT, {"server_id": self._server_id, "now_ms": now_ms}).rowcount == 0:
            place = {"host": self._place.host, "pid": self._place.pid, "process_start": self._place.start}
            connection.execute(REGISTER, {"id": self._server_id, "heartbeat_ms": now_ms, **place})
        for row in self._gone(connection.execute(ALL).all(), first_ms, now_ms):
            connection.execute(FORGET, {"server_id": row.id, "last_heartbeat_ms": row.heartbeat_ms})
        return _interrupt_orphans(connection, now_ms), first_ms, now_ms

    def _gone(self, rows: Sequence[Any], first_ms: int, now_ms: int) -> Iterator[Any]:
        for row in rows:
            there = Place(row.host, row.pid, row.process_start)
            heard_ms = max(row.heartbeat_ms, first_ms)
            if row.id != self._server_id and is_gone(there, heard_ms, self._place, now_ms, start_of):
                yield row

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


def _interrupt_orphans(connection: Connection, now_ms: int) -> int:
    """Those of servers that have no row, however they lost it."""
    num_answers = connection.execute(INTERRUPT, {"now_ms": now_ms}).rowcount
    server_ids = list(connection.execute(ORPHANED_RESPONSES).scalars())
    num_responses = fail_those_of(connection, server_ids, WHY_FAILED) if server_ids else 0
    return num_answers + num_responses


@contextmanager
def present(presence: Presence, period_s: float = BEAT_PERIOD_S) -> Iterator[None]:
    """Among the living servers until the end of the block, whatever storage does meanwhile. StorageError at first."""
    _tell(presence.beat())
    is_over = threading.Event()

    def beat() -> None:
        while not is_over.wait(period_s):
            with suppress(UnavailableError):  # logged, and tried again
                _tell(presence.beat())

    thread = threading.Thread(target=beat, name="presence", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        with suppress(UnavailableError):  # the others will find out
            presence.leave()


def _tell(num_interrupted: int) -> None:
    if num_interrupted:
        log.warning("%d answers of servers that are gone were interrupted", num_interrupted)

"""A PostgreSQL server of the tests' own: in a folder that vanishes, as a user that may run one, over a socket only."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from tests.system_packages import needed

PASSWORD = "k3y-of-the-house"
# The server speaks the language of the machine otherwise, and tests read its words.
SETTINGS = {
    "listen_addresses": "''",
    "fsync": "off",
    "lc_messages": "C",
    "max_connections": "60",
    "timezone": "UTC",
}


@dataclass
class PostgresqlServer:
    """`stop` and `start` as often as one likes; what was committed stays."""

    programs: Path
    folder: Path
    user: pwd.struct_passwd | None
    numbers: Iterator[int]

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def url(self, database: str = "postgres", password: str = PASSWORD) -> str:
        return f"postgresql://tester:{password}@/{database}?host={self.folder}"

    def new_database(self, options: str = "") -> str:
        """The URL of an empty one."""
        name = f"test_{next(self.numbers)}"
        create = f"CREATE DATABASE {name} {options}"
        self.run("psql", "-h", str(self.folder), "-U", "tester", "-q", "-c", create, "postgres")
        return self.url(name)

    def start(self) -> None:
        options = " ".join(f"-c {name}={value}" for name, value in SETTINGS.items())
        place = f"-k {self.folder}"
        log = str(self.folder / "log")
        self.run("pg_ctl", "-D", str(self.data), "-l", log, "-w", "-o", f"{place} {options}", "start")

    def stop(self) -> None:
        self.run("pg_ctl", "-D", str(self.data), "-m", "immediate", "-w", "stop")

    def run(self, program: str, *arguments: str) -> None:
        self._run([str(self.programs / program), *arguments])

    def _run(self, command: Sequence[str]) -> None:
        ids = {} if self.user is None else {"user": self.user.pw_uid, "group": self.user.pw_gid, "extra_groups": []}
        # A server that inherits a pipe would keep its reader waiting.
        with tempfile.TemporaryFile("w+") as said:
            done = subprocess.run(
                command,
                cwd=self.folder,
                env={**os.environ, "PGPASSWORD": PASSWORD, "HOME": str(self.folder)},
                stdout=said,
                stderr=subprocess.STDOUT,
                check=False,
                **ids,  # type: ignore[call-overload]
            )
            said.seek(0)
            assert done.returncode == 0, said.read()


@contextmanager
def running_postgresql() -> Iterator[PostgresqlServer]:
    """Skips the test where PostgreSQL is not installed. It refuses to run as root, which the tests may be."""
    programs = needed("postgresql").parent
    user = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="tcpg"))
    try:
        folder.chmod(0o755)
        if user is not None:
            os.chown(folder, user.pw_uid, user.pw_gid)
        server = PostgresqlServer(programs, folder, user, count())
        (folder / "password").write_text(PASSWORD, encoding="ascii")
        (folder / "password").chmod(0o644)
        options = ("-U", "tester", "-A", "scram-sha-256", f"--pwfile={folder / 'password'}", "-E", "UTF8", "--no-sync")
        server.run("initdb", "-D", str(server.data), "--locale=C.UTF-8", *options)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)

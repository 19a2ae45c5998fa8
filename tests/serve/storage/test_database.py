"""Where the database lies, and its tables from one release to the next."""

from __future__ import annotations

import asyncio
import stat
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, text

from tinycluster.cluster.config import StorageSettings
from tinycluster.engine.errors import ConfigError
from tinycluster.serve.storage.database import Database, default_url
from tinycluster.serve.storage.migrate import SCRIPTS
from tinycluster.serve.storage.storage import Storage, open_storage
from tinycluster.serve.storage.tables import metadata


def test_the_default_is_the_users_data_folder_for_the_user_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert StorageSettings().url is None
    of_home = f"sqlite:///{tmp_path / 'home'}/.local/share/tinycluster/tinycluster.db"
    assert default_url() == of_home
    monkeypatch.setenv("XDG_DATA_HOME", "data")
    assert default_url() == of_home, "a relative path does not count"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    file = tmp_path / "data" / "tinycluster" / "tinycluster.db"
    assert default_url() == f"sqlite:///{file}"
    with closing(open_storage(default_url())) as storage:
        asyncio.run(storage.conversations.create("ann", title="T"))
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in file.parent.iterdir()}
    assert modes == dict.fromkeys(("tinycluster.db", "tinycluster.db-wal", "tinycluster.db-shm"), 0o600)
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["a?b", "a b", "a%3Fb", "a#b", "ä", "a&b=c", "\udcff"])
def test_the_users_folder_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / name))
    open_storage(default_url()).close()
    assert [file.relative_to(tmp_path) for file in tmp_path.rglob("*.db")] == [
        Path(name, "tinycluster", "tinycluster.db")
    ]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "sqlite:///x.db?mode=ro",
        "sqlite:///x.db?",
        "sqlite:///%00",
        "sqlite:x.db",
        "sqlite:///",
        "mysql://somebody@host/name",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite://host/file.db",
        "sqlite+aiosqlite:///file.db",
        "postgres",
        "memory:",
        "postgresql://host:port/name",
    ],
)
def test_an_address_that_is_none_is_refused_in_a_sentence(url: str) -> None:
    with pytest.raises(ConfigError, match=r"^storage\.url") as refused:
        Database(url)
    assert "\n" not in str(refused.value)


def test_an_address_that_is_refused_does_not_show_its_password() -> None:
    with pytest.raises(ConfigError) as refused:
        Database("mysql://somebody:s3cret@host/name")
    assert "s3cret" not in str(refused.value)


def test_the_migrations_travel_with_the_package() -> None:
    assert (SCRIPTS / "env.py").is_file()
    assert (SCRIPTS / "versions" / "first_tables.py").is_file()


def differences(connection: Connection) -> list[object]:
    return list(compare_metadata(MigrationContext.configure(connection), metadata))


@pytest.mark.parametrize("storage_kind", ["sqlite", "postgresql"])
def test_the_migrations_lead_to_the_tables_of_this_release(storage_kind: str, urls: dict[str, str]) -> None:
    with closing(open_storage(urls[storage_kind])) as storage:
        assert storage.database.read_now(differences) == []
        storage.database.write_now(lambda connection: connection.execute(text("DROP TABLE user_settings")))
        assert storage.database.read_now(differences) != []


def test_a_database_of_this_release_opens_again_and_keeps_what_it_has(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'x.db'}"
    for _ in range(2):
        with closing(open_storage(url)) as storage:
            asyncio.run(storage.conversations.create("ann", title="T"))
    with closing(open_storage(url)) as storage:
        assert len(asyncio.run(storage.conversations.list("ann", limit=9)).conversations) == 2


@pytest.mark.parametrize("storage_kind", ["sqlite", "postgresql"])
def test_a_database_of_a_newer_release_is_refused_and_untouched(storage_kind: str, urls: dict[str, str]) -> None:
    with closing(open_storage(urls[storage_kind])) as storage:
        newer = text("UPDATE alembic_version SET version_num = 'from_the_future'")
        storage.database.write_now(lambda connection: connection.execute(newer))
    with pytest.raises(ConfigError, match=r"newer release of tinycluster \(revision from_the_future\)"):
        open_storage(urls[storage_kind])
    database = Database(urls[storage_kind])
    revision = text("SELECT version_num FROM alembic_version")
    assert database.read_now(lambda connection: connection.execute(revision).scalar()) == "from_the_future"
    database.close()


def test_an_application_that_is_never_closed_leaves_no_connection_open() -> None:
    """A connection that Python finds unclosed is a warning, and warnings are errors."""
    storage = Storage(Database())
    asyncio.run(storage.conversations.create("ann", title="T"))
    del storage


@pytest.mark.parametrize("storage_kind", ["sqlite", "postgresql"])
def test_several_servers_that_start_together_make_the_tables_once(storage_kind: str, urls: dict[str, str]) -> None:
    async def start() -> list[Storage]:
        return await asyncio.gather(*(asyncio.to_thread(open_storage, urls[storage_kind]) for _ in range(4)))

    for storage in asyncio.run(start()):
        storage.close()

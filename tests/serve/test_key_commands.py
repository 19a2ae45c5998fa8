"""`tinycluster keys`, on a database of its own, and the servers that refuse to start without keys."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from tests.serve.command_line import Outcome, tinycluster
from tests.serve.keyed_server import keyed_server
from tests.serve.test_keys import wait_until

KEY = re.compile(r"tc-[A-Za-z0-9_-]{43}\n")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'keys.db'}"


def refused(outcome: Outcome, *words: str) -> None:
    assert (outcome.exit_code, outcome.stdout) == (2, "")
    assert outcome.stderr.startswith("error: ")
    assert outcome.stderr.count("\n") == 1
    assert all(word in outcome.stderr for word in words), outcome.stderr


def test_a_key_is_shown_once_and_listed_by_its_end(url: str) -> None:
    limits = ["--requests-per-minute", "60", "--tokens-per-minute", "10000", "--max-running", "4", "--weight", "2"]
    began_s = time.time()
    made = tinycluster("keys", "create", "zoe", "--storage-url", url, "--role", "admin", "--expires", "30d", *limits)
    assert made.exit_code == 0
    assert KEY.fullmatch(made.stdout)
    listed = tinycluster("keys", "list", "--storage-url", url, "--json").stdout
    assert made.stdout.strip() not in listed
    (key,) = json.loads(listed)
    assert key["hint"] == made.stdout.strip()[-4:]
    assert int(began_s) <= key["expires_at"] - 30 * 24 * 3600 <= key["created_at"] <= time.time()
    expected = {"name": "zoe", "role": "admin", "state": "good", "requests_per_minute": 60}
    expected |= {"tokens_per_minute": 10000, "max_running": 4, "weight": 2.0}
    assert {name: key[name] for name in expected} == expected
    table = tinycluster("keys", "list", "--storage-url", url).stdout
    assert "60 requests/min, 10000 tokens/min, 4 running, weight 2" in table
    assert f"tc-…{key['hint']}" in table


def test_a_key_is_revoked_by_its_name_or_its_id(url: str) -> None:
    for name in ("zoe", "adam"):
        tinycluster("keys", "create", name, "--storage-url", url)
    keys = json.loads(tinycluster("keys", "list", "--storage-url", url, "--json").stdout)
    assert tinycluster("keys", "revoke", "zoe", "--storage-url", url).exit_code == 0
    (adam,) = [key["id"] for key in keys if key["name"] == "adam"]
    assert f"revoked {adam}, user adam" in tinycluster("keys", "revoke", adam, "--storage-url", url).stdout
    keys = json.loads(tinycluster("keys", "list", "--storage-url", url, "--json").stdout)
    assert [key["state"] for key in keys] == ["revoked"] * 2
    refused(tinycluster("keys", "revoke", "zoe", "--storage-url", url), "no key with the name or id 'zoe'")


def test_keys_are_made_and_revoked_while_a_server_runs(tmp_path: Path) -> None:
    with keyed_server(tmp_path) as server:
        where = ("--storage-url", server.storage_url)
        with server.client(tinycluster("keys", "create", "zoe", *where).stdout.strip()) as client:
            assert client.get("/v1/models").status_code == 200
            tinycluster("keys", "revoke", "zoe", *where)
            wait_until(lambda: client.get("/v1/models").status_code == 401)


def test_the_database_is_that_of_the_configuration(tmp_path: Path, url: str) -> None:
    config = tmp_path / "served.yaml"
    config.write_text(f"models: [{{name: m, source: nowhere}}]\nstorage: {{url: '{url}'}}\n", encoding="utf-8")
    tinycluster("keys", "create", "zoe", "--config", str(config))
    assert [key["name"] for key in json.loads(tinycluster("keys", "list", "--storage-url", url, "--json").stdout)] == [
        "zoe"
    ]
    refused(tinycluster("keys", "list", "--config", str(config), "--storage-url", url), "two databases")


def test_without_a_configuration_it_is_that_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    tinycluster("keys", "create", "zoe")
    assert "zoe" in tinycluster("keys", "list").stdout
    assert (tmp_path / "tinycluster" / "tinycluster.db").exists()


@pytest.mark.parametrize("arguments", [["list"], ["list", "--json"], ["revoke", "zoe"]])
@pytest.mark.parametrize("is_default", [True, False])
def test_a_database_that_is_not_there_is_not_made_to_be_read(
    arguments: list[str], is_default: bool, url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    where = [] if is_default else ["--storage-url", url]
    refused(tinycluster("keys", *arguments, *where), "storage.url", "there is no database", ".db")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["keys", "create", ""], ["name"]),
        (["keys", "create", "  "], ["name"]),
        (["keys", "create", "a\x1b[31m"], ["name"]),
        (["keys", "create", "a", "--role", "king"], ["role"]),
        (["keys", "create", "a", "--role", ""], ["role"]),
        (["keys", "create", "a", "--expires", ""], ["--expires", "like 30d"]),
        (["keys", "create", "a", "--expires", "0d"], ["expires_in"]),
        (["keys", "create", "a", "--expires", "-1d"], ["--expires"]),
        (["keys", "create", "a", "--expires", "999y"], ["expires_in"]),
        (["keys", "create", "a", "--requests-per-minute", "0"], ["requests_per_minute"]),
        (["keys", "create", "a", "--weight", "nan"], ["weight"]),
        (["keys", "create", "a", "--storage-url", ""], ["storage.url"]),
        (["keys", "create", "a", "--storage-url", "memory"], ["storage.url", "outlive"]),
    ],
    ids=" ".join,
)
def test_row_8_what_is_empty_or_impossible_makes_no_key(
    url: str, arguments: list[str], words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    refused(tinycluster(*arguments), *words)


@pytest.mark.parametrize("value", ["", "' '", "null"])
def test_row_8_an_empty_setting_does_not_start_a_server(value: str) -> None:
    """Where a value is missing, auth must not become none by itself."""
    refused(tinycluster("serve", "smollm2", "--local", "--set", f"server.auth={value}"), "server.auth")


@pytest.mark.parametrize("value", ["''", "' '"])
def test_row_8_an_empty_database_does_not_start_a_server(value: str) -> None:
    refused(tinycluster("serve", "smollm2", "--local", "--set", f"storage.url={value}"), "storage.url must not be")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
@pytest.mark.parametrize("front", ["direct", "proxy"])
def test_a_server_that_others_reach_needs_keys(host: str, front: str) -> None:
    outcome = tinycluster("serve", "smollm2", "--host", host, "--front", front)
    refused(outcome, f"server.host {host} lets other machines in", "set server.auth to keys", "--insecure")


@pytest.mark.parametrize("way_out", [["--insecure"], ["--set", "server.auth=keys"]])
def test_a_server_that_others_may_reach_gets_further(
    way_out: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As far as the next mistake."""
    for variable in ("HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    address = ["--host", "0.0.0.0", "--port", "0"]
    outcome = tinycluster("serve", "smollm2", "--local", *address, *way_out, "--set", "source=/no")
    assert "lets other machines in" not in outcome.stderr
    assert "/no" in outcome.stderr

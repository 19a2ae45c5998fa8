"""`tinycluster status` and `top`, in pipes and on a real terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from typing import Any

import httpx
import pytest
from rich.console import Console

from tests.serve.conftest import StartServer
from tests.serve.fake_engine import FakeEngine
from tinycluster.cluster.rank_report import LinkBytes, RankReport
from tinycluster.engine.errors import ConfigError, UnavailableError
from tinycluster.serve.cluster_client import ClusterClient
from tinycluster.serve.cluster_screen import plain_lines, screen
from tinycluster.serve.top import show_live, show_status

COMMAND = [sys.executable, "-m", "tinycluster.serve.cli"]


def busy_engine(name: str = "smollm2") -> FakeEngine:
    engine = FakeEngine(name, num_waiting=4, running={1, 2, 3})
    links = (LinkBytes(1, 3 * 2**20, 2**20),)
    engine.rank_times.take(0, RankReport(10**9, 0, 0, 0, 0, 0), 0.0)
    engine.rank_times.take(0, RankReport(2 * 10**9, 5 * 10**8, 10**8, 2 * 10**8, 2 * 10**8, 0, links), 0.0)
    return engine


def test_status_in_a_pipe_is_a_line_per_model(start_server: StartServer) -> None:
    url = start_server(busy_engine("a"), FakeEngine("b"))
    out = io.StringIO()
    with ClusterClient(url, None) as client:
        show_status(client, out, as_json=False)
    first, second = out.getvalue().splitlines()
    assert re.match(r"\d\d:\d\d:\d\d a ready running=3 waiting=4 ", first)
    assert first.endswith(" kv=2/8 recoveries=0 ranks=80%")
    assert second.split(maxsplit=1)[1] == (
        "b ready running=0 waiting=0 requests_per_s=0 prompt_tokens_per_s=0 generation_tokens_per_s=0 "
        "ttft_p50_ms=- itl_p50_ms=- kv=2/8 recoveries=0 ranks=0%"
    )


def test_status_as_json_is_what_the_server_says(start_server: StartServer) -> None:
    out = io.StringIO()
    with ClusterClient(start_server(FakeEngine("a")), None) as client:
        show_status(client, out, as_json=True)
        asked = client.snapshot()
    shown = json.loads(out.getvalue())
    assert set(shown) == set(asked)
    assert shown["models"][0]["ranks"][0]["units"] == asked["models"][0]["ranks"][0]["units"]


def test_a_failed_model_is_an_error_after_the_look(start_server: StartServer) -> None:
    engine, out = FakeEngine("a"), io.StringIO()
    url = start_server(engine)
    engine.has_failed = True
    with ClusterClient(url, None) as client, pytest.raises(UnavailableError, match="a failed"):
        show_status(client, out, as_json=False)
    assert " a failed " in out.getvalue()


def test_top_in_a_pipe_goes_on_until_the_server_ends(start_server: StartServer) -> None:
    engine, out = FakeEngine("a"), io.StringIO()
    with ClusterClient(start_server(engine), None) as client:
        snapshots = client.snapshots()
        next(snapshots)
        engine.has_failed = True
        show_live(client, out)
    assert out.getvalue().splitlines()[-1].split()[1:3] == ["a", "failed"]


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://nobody.invalid"])
def test_nobody_there_is_a_sentence(url: str) -> None:
    with ClusterClient(url, None) as client, pytest.raises(UnavailableError, match="no answer from"):
        client.snapshot()


def test_another_server_and_no_url_are_a_sentence(start_server: StartServer) -> None:
    with ClusterClient(f"{start_server(FakeEngine())}/elsewhere", None) as client, pytest.raises(ConfigError):
        client.snapshot()
    with ClusterClient("no url", None) as client, pytest.raises(ConfigError, match="--url 'no url' is not a URL"):
        client.snapshot()


def test_a_servers_words_do_not_move_the_cursor(start_server: StartServer) -> None:
    with ClusterClient(start_server(FakeEngine("a\x1b[2Jb\nc")), None) as client:
        shown = client.snapshot()
    out = io.StringIO()
    Console(file=out, width=200).print(screen(shown, width=200))
    assert "\x1b" not in out.getvalue() + "".join(plain_lines(shown))
    assert "a?[2Jb?c" in out.getvalue()


@pytest.mark.parametrize("width", [80, 200])
def test_nothing_is_cut_off_on_a_terminal_of_80_columns(start_server: StartServer, width: int) -> None:
    with ClusterClient(start_server(busy_engine()), None) as client:
        shown = client.snapshot()
    out = io.StringIO()
    Console(file=out, width=width).print(screen(shown, width=width))
    assert "…" not in out.getvalue()
    assert max(map(len, out.getvalue().splitlines())) <= width
    for wanted in ("smollm2", "0–0", "50%", "3.0 MiB", "2 used", "TTFT", "alive"):
        assert wanted in out.getvalue()
    assert ("heard" in out.getvalue()) == (width == 200)


class Terminal:
    """A command on a pseudo-terminal of its own."""

    def __init__(self, *command: str) -> None:
        self._pid, self._fd = pty.fork()
        if self._pid == 0:
            os.environ.update(TERM="xterm-256color", COLUMNS="140", LINES="40")
            os.execv(command[0], command)
        self.text = ""

    def read_until(self, wanted: str) -> None:
        deadline_s = time.monotonic() + 120
        while wanted not in self.text:
            ready, _, _ = select.select([self._fd], [], [], deadline_s - time.monotonic())
            assert ready, f"{wanted!r} did not appear in {self.text!r}"
            self.text += os.read(self._fd, 2**16).decode(errors="replace")

    def press(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def exit_code(self) -> int:
        # What it still writes must be read, or it never ends.
        while True:
            try:
                if not (content := os.read(self._fd, 2**16)):
                    break
            except OSError:
                break
            self.text += content.decode(errors="replace")
        _, status = os.waitpid(self._pid, 0)
        os.close(self._fd)
        return os.waitstatus_to_exitcode(status)


@pytest.fixture
def busy_url(start_server: StartServer) -> str:
    return start_server(busy_engine())


def test_top_on_a_terminal_shows_ranks_live_and_ends_with_q(busy_url: str) -> None:
    terminal = Terminal(*COMMAND, "top", "--url", busy_url)
    for wanted in ("smollm2", "ready", "3 running", "4 waiting", "50%", "3.0 MiB", "alive"):
        terminal.read_until(wanted)
    terminal.press("q")
    assert terminal.exit_code() == 0
    # The other screen is left, and the cursor is back.
    assert "\x1b[?1049h" in terminal.text
    assert terminal.text.rindex("\x1b[?1049l") > terminal.text.rindex("\x1b[?1049h")
    assert terminal.text.rindex("\x1b[?25h") > terminal.text.rindex("\x1b[?25l")


def test_ctrl_c_ends_top_and_leaves_the_terminal_as_it_was(busy_url: str) -> None:
    terminal = Terminal(*COMMAND, "top", "--url", busy_url)
    terminal.read_until("smollm2")
    terminal.press("\x03")
    assert terminal.exit_code() == 0
    assert terminal.text.rindex("\x1b[?1049l") > terminal.text.rindex("\x1b[?1049h")
    assert "Traceback" not in terminal.text


SHOWS_WITH_AN_INTERRUPT = """
import json, os, signal, sys, time
from tinycluster.serve.top import show_live

class Late:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0)  # here Python looks for signals, and what is raised is only reported

class View(dict):
    def __getitem__(self, name):
        Late()
        return super().__getitem__(name)

class Client:
    def snapshots(self):
        yield View(json.loads(sys.argv[1]))
        time.sleep(3600)

show_live(Client(), sys.stdout)
print("left")
"""


def test_an_interrupt_in_a_destructor_ends_top_too(busy_url: str) -> None:
    with ClusterClient(busy_url, None) as client:
        shown = client.snapshot()
    terminal = Terminal(sys.executable, "-c", SHOWS_WITH_AN_INTERRUPT, json.dumps(shown))
    terminal.read_until("left")
    assert terminal.exit_code() == 0
    assert "ignored" not in terminal.text


def test_status_without_a_server_exits_with_1() -> None:
    done = subprocess.run(
        [*COMMAND, "status", "--url", "http://127.0.0.1:9"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: no answer from http://127.0.0.1:9")


def test_a_url_with_a_port_that_is_none_is_a_sentence() -> None:
    with pytest.raises(ConfigError, match="is not a URL like"):
        ClusterClient("http://127.0.0.1:abc", None)


def without(shown: Any, *place: str | int) -> bytes:
    """The view with one field less, by the place of the field."""
    view = json.loads(json.dumps(shown))
    *outer, last = place
    inner = view
    for name in outer:
        inner = inner[name]
    del inner[last]
    return json.dumps(view).encode()


def test_a_view_with_other_fields_is_a_sentence(start_server: StartServer) -> None:
    with ClusterClient(start_server(busy_engine()), None) as client:
        shown = client.snapshot()
    answers = [
        b'{"models": [{}], "nodes": []}',
        without(shown, "version"),
        without(shown, "models", 0, "recoveries", "count"),
        without(shown, "models", 0, "ranks", 0, "load", "wait"),
        without(shown, "models", 0, "ranks", 0, "layers", 0),
        without(shown, "nodes", 0, "cpus"),
        *(json.dumps({**shown, "time": time}).encode() for time in ("now", 1e300, -1, float("nan"))),
        *(json.dumps({**shown, "uptime_s": time}).encode() for time in (1e300, float("inf"), float("nan"))),
        json.dumps({**shown, "nodes": [{**shown["nodes"][0], "memory_bytes": 10**400}]}).encode(),
        b"[" * 100_000,
        b"\xff",
    ]
    for content in answers:
        with ClusterClient("http://server", None) as client:
            client._http = httpx.Client(base_url="http://server", transport=answering(content))
            for show in (
                lambda: show_status(client, io.StringIO(), as_json=False),
                lambda: show_live(client, io.StringIO()),
            ):
                with pytest.raises(UnavailableError, match="no view of a cluster that this version can read"):
                    show()


def answering(content: bytes) -> httpx.MockTransport:
    """A server whose view, and whose only event, is this."""

    def answer(request: httpx.Request) -> httpx.Response:
        is_event = request.url.path.endswith("/events")
        return httpx.Response(200, content=b"data: " + content + b"\n\n" if is_event else content)

    return httpx.MockTransport(answer)


def test_fields_of_a_newer_server_are_shown_as_json(start_server: StartServer) -> None:
    with ClusterClient(start_server(busy_engine()), None) as client:
        newer = {**client.snapshot(), "weather": "fine"}
    out = io.StringIO()
    with ClusterClient("http://server", None) as client:
        client._http = httpx.Client(base_url="http://server", transport=answering(json.dumps(newer).encode()))
        show_status(client, out, as_json=True)
    assert json.loads(out.getvalue()) == newer


@pytest.mark.parametrize(("status", "kind"), [(503, UnavailableError), (401, ConfigError)])
def test_a_servers_refusal_is_a_sentence_without_its_escape_sequences(status: int, kind: type[Exception]) -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(status, json={"error": {"message": "\x1b[2J no"}})

    with ClusterClient("http://server", None) as client:
        client._http = httpx.Client(base_url="http://server", transport=httpx.MockTransport(answer))
        with pytest.raises(kind, match=r"^http://server: \\x1b\[2J no$"):
            client.snapshot()

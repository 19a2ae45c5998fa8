"""The server under attack, in a process of its own: `python -m tests.attacks.victim '{"engine": "fake"}'`.

It prints its URL, then answers each line of its stdin with a line of JSON, until its stdin ends.
"""

from __future__ import annotations

import ctypes
import json
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.serve.fake_engine import FakeEngine
from tinycluster.cluster.config import Settings
from tinycluster.engine.checkpoint import open_checkpoint
from tinycluster.engine.errors import ContextLengthError
from tinycluster.serve.app import create_app
from tinycluster.serve.configure import configure
from tinycluster.serve.connection import ConnectionLimits
from tinycluster.serve.http_server import HttpServer
from tinycluster.serve.key_guard import KeyGuard
from tinycluster.serve.listener import listen, url_of
from tinycluster.serve.registry import ModelRegistry

WATCHED = ("pickle.find_class", "socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system", "import")


class RealTokenizer(FakeEngine):
    """A fake engine that takes prompts of a real tokenizer, short ones only."""

    def submit_choices(self, prompt_token_ids: Sequence[int], *arguments: Any, **options: Any) -> Any:
        if len(prompt_token_ids) > 1000:
            raise ContextLengthError(f"the prompt has {len(prompt_token_ids)} tokens")
        return super().submit_choices(b"good", *arguments, **options)


class Events:
    """Audit events that no request may cause: connections, processes, unpickling, files opened, modules imported."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.is_on = False
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.is_on and (event in WATCHED or (event == "open" and isinstance(arguments[0], str | bytes | Path))):
            self.seen.append(f"{event} {arguments!r}"[:200])


def engine_of(options: dict[str, Any], running: ExitStack) -> Any:
    if options.get("engine", "fake") == "fake":
        return FakeEngine(max_model_len=options.get("max_model_len", 1000))
    if options["engine"] == "real tokenizer":
        tokenizer: Any = open_checkpoint(Path(options["folder"])).tokenizer()
        return RealTokenizer(max_model_len=2**31, tokenizer=tokenizer)
    from tinycluster.cluster.launch import start_engine

    settings = Settings.model_validate({"models": [options["model"]], "cluster": {"address": "local"}})
    engine = start_engine(settings.models[0], settings)
    running.callback(engine.close)
    return engine


def with_keys(options: dict[str, Any]) -> Settings:
    server = {"auth": "keys", "allowed_hosts": options.get("allowed_hosts", [])}
    model, storage = {"name": "fake", "source": "nowhere"}, {"url": options["storage_url"]}
    # Beside the database, and not in the developer's home.
    telemetry = {"log_dir": str(Path(storage["url"].removeprefix("sqlite:///")).parent / "logs")}
    local = {"cluster": {"address": "local"}, "telemetry": telemetry}
    tree = {"models": [model], **local, "server": server, "storage": storage}
    return Settings.model_validate(tree)


class HeapUse(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    NAMES = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = [(name, ctypes.c_size_t) for name in NAMES]


def heap_bytes() -> int:
    """What the C library has handed out and not got back, in all of its arenas and in mappings of their own."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = HeapUse
    use = mallinfo2()
    return int(use.uordblks + use.hblkhd)


def main() -> None:
    options = json.loads(sys.argv[1])
    events, registry = Events(), ModelRegistry()
    with ExitStack() as running:
        engine = engine_of(options, running)
        registry.add(engine)
        listener = listen("127.0.0.1", 0)
        if "send_buffer_bytes" in options:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, options["send_buffer_bytes"])
        app = create_app(registry)
        app.state.allowed_hosts = tuple(options.get("allowed_hosts", ()))
        if "storage_url" in options:
            running.enter_context(configure(app, with_keys(options)))
        if "max_wrong_keys" in options:
            app.state.guard = KeyGuard(app.state.storage.keys, registry, max_wrong_keys=options["max_wrong_keys"])
        server = HttpServer(app, listener, ConnectionLimits(**options.get("limits", {})))
        running.callback(server.stop)
        running.callback(server.drain)
        server.start()
        print(url_of(listener), flush=True)
        for line in sys.stdin:
            print(json.dumps(_answer(line.strip(), engine, events)), flush=True)


def _answer(question: str, engine: Any, events: Events) -> Any:
    if question == "running":
        return len(engine.running) if isinstance(engine, FakeEngine) else engine.num_running + engine.num_waiting
    if question == "preemptions":
        return engine.num_preemptions
    if question == "heap_bytes":
        return heap_bytes()
    if question == "watch":
        events.seen, events.is_on = [], True
    elif question == "events":
        events.is_on = False
        return events.seen
    return None


if __name__ == "__main__":
    main()

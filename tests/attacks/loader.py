"""A child that opens model files for its parent: `python -m tests.attacks.loader`.

Each line of its stdin is {"kind": "header" or "model", "path": ...}; the answer is a line of JSON with the error, if
any, and the audit events that opening a model must not cause. Once it is ready it may take only a little more memory.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

import tinycluster.engine.folder_tokenizer
import tinycluster.engine.gguf_tokenizer  # noqa: F401 (imported late by the product)
from tests.fuzz.targets import use_checkpoint
from tinycluster.engine.checkpoint import open_checkpoint
from tinycluster.engine.errors import CheckpointError, RequestError
from tinycluster.engine.gguf_header import read_header

SPARE_BYTES, MAX_CPU_S = 256 * 2**20, 60
FORBIDDEN = (
    "pickle.find_class",
    "socket.connect",
    "socket.getaddrinfo",
    "subprocess.Popen",
    "os.system",
)


def main() -> None:
    events: list[str] = []
    sys.addaudithook(lambda event, arguments: _record(event, arguments, events))
    used_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used_bytes + SPARE_BYTES, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_S, MAX_CPU_S))
    for line in sys.stdin:
        task = json.loads(line)
        events.clear()
        error = _error(task["kind"], Path(task["path"]))
        folder = str(Path(task["path"]).parent)
        foreign = [event for event in events if not event.startswith(f"open {folder}")]
        print(json.dumps({"error": error, "events": foreign}), flush=True)


def _record(event: str, arguments: tuple[Any, ...], events: list[str]) -> None:
    if event in FORBIDDEN:
        events.append(f"{event} {arguments!r}"[:200])
    elif event == "open" and isinstance(arguments[0], str | Path) and not str(arguments[0]).endswith((".py", ".pyc")):
        events.append(f"open {arguments[0]}")


def _error(kind: str, path: Path) -> list[str] | None:
    """The kind and the message of what was raised."""
    try:
        if kind == "header":
            read_header(str(path))
        else:
            use_checkpoint(open_checkpoint(path))
    except (CheckpointError, RequestError) as error:
        return [type(error).__name__, str(error)]
    except BaseException as error:  # a panic of a library's native code is none of Exception's
        return [type(error).__name__, repr(error)[:500]]
    return None


if __name__ == "__main__":
    main()

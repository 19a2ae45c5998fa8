"""A content filter by HTTP: it refuses what contains "bad", and remembers what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Moderator:
    """`answer` takes the place of its verdict: a status and a body."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.answer: tuple[int, bytes] | None = None
        self.url = ""

    def judge(self, question: dict[str, Any]) -> tuple[int, bytes]:
        self.asked.append(question)
        verdict = {"allowed": "bad" not in question["text"], "reason": "it says bad"}
        return self.answer or (200, json.dumps(verdict).encode())


@contextmanager
def moderator() -> Iterator[Moderator]:
    judge = Moderator()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            question = json.loads(self.rfile.read(int(self.headers["content-length"])))
            status, body = judge.judge(question)
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    judge.url = f"http://127.0.0.1:{server.server_address[1]}/"
    try:
        yield judge
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

"""The web pages: `/` talks to the models, `/cluster` shows the ranks at work, and /ui/ holds what both are made of.

Every file is read once, when the routes are made. A request's path is looked up in that table and goes nowhere else, so
that no spelling of it reaches the file system.

The pages' policy lets scripts, styles, fonts and pictures come from this server only, forbids other sites to frame
them, and takes from scripts every way to turn text into markup: what a model writes cannot become part of the page.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

FOLDER = Path(__file__).parent / "ui"
VENDORED = "vendor/"
"""Folders in here carry their version in their names: what they hold never changes."""

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
POLICY = "; ".join(
    (
        "default-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "object-src 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
ON_EVERY_FILE = {
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
ASK_EACH_TIME = "no-cache"
KEEP_FOR_A_YEAR = "public, max-age=31536000, immutable"


@dataclass(frozen=True)
class StaticFile:
    content: bytes
    headers: Mapping[str, str]

    def answer(self, request: Request) -> Response:
        """304 to whom has it; a Range is not looked at, which RFC 9110 allows (section 14.2): the answer is whole."""
        known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
        if self.headers["etag"] in known:
            kept = {name: value for name, value in self.headers.items() if name != "content-type"}
            return Response(status_code=304, headers=kept)
        return Response(self.content, headers=dict(self.headers))


def static_files(folder: Path) -> dict[str, StaticFile]:
    """By their paths below the folder, with "/" between the parts. Files of other kinds are not part of the pages."""
    return dict(_read(folder))


def _read(folder: Path) -> Iterator[tuple[str, StaticFile]]:
    for path in sorted(folder.rglob("*")):
        if path.suffix in MEDIA_TYPES and path.is_file():
            name, content = path.relative_to(folder).as_posix(), path.read_bytes()
            headers = {
                "content-type": MEDIA_TYPES[path.suffix],
                "etag": f'"{hashlib.sha256(content).hexdigest()[:32]}"',
                "cache-control": KEEP_FOR_A_YEAR if name.startswith(VENDORED) else ASK_EACH_TIME,
            }
            yield name, StaticFile(content, {**headers, **ON_EVERY_FILE})


def add_ui_routes(app: FastAPI) -> None:
    files = static_files(FOLDER)

    @app.get("/")
    async def chat_page(request: Request) -> Response:
        return files["index.html"].answer(request)

    @app.get("/cluster")
    async def cluster_page(request: Request) -> Response:
        return files["cluster.html"].answer(request)

    @app.get("/ui/{name:path}")
    async def page_file(name: str, request: Request) -> Response:
        """404 for every name that is not exactly one of the table's."""
        if name not in files:
            raise HTTPException(404)
        return files[name].answer(request)

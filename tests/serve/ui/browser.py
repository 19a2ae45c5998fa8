"""Debian's Chromium, one for all tests, and what a test sees through it."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Dialog,
    Page,
    Request,
    ViewportSize,
    sync_playwright,
)

DESKTOP: ViewportSize = {"width": 1280, "height": 800}
PHONE: ViewportSize = {"width": 390, "height": 844}
SIZES = {"desktop": DESKTOP, "phone": PHONE}
SCREENSHOTS = Path(__file__).parents[3] / "build" / "screenshots"
"""Pictures of the last run, for people; git ignores them."""
FAILED_REQUEST = re.compile(r"Failed to load resource: (the server responded with a status of \d+|net::ERR_)")
"""The browser's own word about a request that went wrong, which tests of errors provoke."""


class OneBrowser:
    """Started with the first page. The driver runs an event loop in this thread, in which nobody else can have one:
    `close` comes right after the last test of this folder."""

    def __init__(self) -> None:
        self._opened = ExitStack()
        self._browser: Browser | None = None
        self._contexts: dict[str, BrowserContext] = {}

    def get(self, chromium: Path) -> Browser:
        if self._browser is None:
            home = self._opened.enter_context(tempfile.TemporaryDirectory(prefix="tc", ignore_cleanup_errors=True))
            playwright = self._opened.enter_context(sync_playwright())
            flags = ["--no-sandbox"] if os.geteuid() == 0 else []
            environment: dict[str, str | float | bool] = {**os.environ, "HOME": home}
            self._browser = playwright.chromium.launch(executable_path=chromium, args=flags, env=environment)
            self._opened.callback(self._browser.close)
        return self._browser

    def context(self, chromium: Path, **wanted: Any) -> BrowserContext:
        """One for all tests that want the same: a page in it starts in half the time that one in a new context takes.
        Every test's server is a place of its own to the browser, so that none sees what another kept."""
        name = repr(sorted(wanted.items()))
        if name not in self._contexts:
            self._contexts[name] = self.get(chromium).new_context(**wanted)
            self._contexts[name].grant_permissions(["clipboard-read", "clipboard-write"])
        return self._contexts[name]

    def close(self) -> None:
        self._opened.close()
        self._browser = None
        self._contexts.clear()


@dataclass
class Sight:
    """A page on one server, and everything that must not happen in it."""

    page: Page
    url: str
    troubles: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("request", self._asked)
        self.page.on("dialog", self._opened)

    def open(self, path: str = "/") -> Page:
        self.page.goto(self.url + path)
        return self.page

    def leave(self) -> None:
        """A later server may have this one's port, and would find what is kept here."""
        if self.page.url.startswith(self.url):
            self.page.evaluate("localStorage.clear()")
        self.page.close()

    def check(self) -> None:
        assert self.troubles == []
        assert self.foreign == []
        assert self.dialogs == []

    def picture(self, name: str) -> None:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png")

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not FAILED_REQUEST.match(message.text):
            self.troubles.append(message.text)

    def _asked(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in ("blob", "data") and parts.netloc != urlsplit(self.url).netloc:
            self.foreign.append(request.url)

    def _opened(self, dialog: Dialog) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()


OpenSight = Callable[..., Sight]


def options(size: str, **more: Any) -> dict[str, Any]:
    touch = {"has_touch": True, "is_mobile": True} if size == "phone" else {}
    return {"viewport": SIZES[size], "reduced_motion": "reduce", **touch, **more}

"""server.content_filter: what may be asked, and what may be answered.

Prompts are judged as the model reads them, so that a text in several parts, in tool descriptions or as token ids is
judged, too. Patterns see every character of an answer before its reader does; a URL is asked for the whole answer so
far whenever a line or PIECE_CHARS more have come, and what it has not yet approved is held back.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import httpx

from tinycluster.cluster.config import ContentFilterSettings
from tinycluster.cluster.web_address import origin_of
from tinycluster.engine.errors import ConfigError, RequestError, UnavailableError
from tinycluster.serve.content_patterns import Patterns

log = logging.getLogger(__name__)

PIECE_CHARS = 80
MAX_ASKED_AT_ONCE = 64
"""Texts beyond these wait, and the time that the filter has for an answer does not run meanwhile: or whoever asks for
much at once would make it fail."""


class NoVerdictError(Exception):
    """The filter does not say whether a text is allowed."""


class ContentFilter:
    """Used on one event loop. ConfigError for a pattern or a URL that is none."""

    def __init__(self, settings: ContentFilterSettings) -> None:
        self._settings = settings
        self.patterns = Patterns(settings.patterns)
        self._url = None if settings.url is None else _parsed(settings.url)
        self._http: httpx.AsyncClient | None = None
        self._free = asyncio.Semaphore(MAX_ASKED_AT_ONCE)

    async def check_prompt(self, text: str, model: str, param: str) -> None:
        """RequestError (content_filter) where it may not be asked; UnavailableError as of `unless_failed`."""
        screen = Screen(self, model, "input")
        if await screen.approve(text, is_whole=True) is None:
            raise RequestError("The content filter of this server refuses this prompt", param, "content_filter")

    def screen(self, model: str) -> Screen:
        """For one answer."""
        return Screen(self, model, "output")

    @property
    def has_url(self) -> bool:
        return self._url is not None

    def note_failure(self, error: NoVerdictError) -> None:
        """UnavailableError where the filter fails closed."""
        log.warning("the content filter gives no verdict: %s", error)
        if self._settings.on_failure == "closed":
            raise UnavailableError("The content filter of this server does not answer")

    async def ask(self, stage: str, text: str, model: str) -> bool:
        """What the URL says. NoVerdictError."""
        url = self._url
        assert url is not None
        if self._http is None:
            # Texts of clients go to this URL and nowhere else: no proxy that the environment names, no redirect.
            self._http = httpx.AsyncClient(timeout=self._settings.timeout_s, trust_env=False)
        try:
            async with self._free:
                reply = await self._http.post(url, json={"stage": stage, "text": text, "model": model})
            verdict: Any = reply.raise_for_status().json()
        except httpx.HTTPStatusError as error:
            raise NoVerdictError(f"{origin_of(str(url))} answers {error.response.status_code}") from None
        except (httpx.HTTPError, OSError, ValueError, RecursionError) as error:
            # Its words may quote the URL, and with it a password.
            raise NoVerdictError(f"{origin_of(str(url))}: {type(error).__name__}") from None
        if not isinstance(verdict, dict) or not isinstance(verdict.get("allowed"), bool):
            raise NoVerdictError('the answer has no "allowed" that is true or false')
        return bool(verdict["allowed"])

    async def close(self) -> None:
        self.patterns.close()
        if self._http is not None:
            await self._http.aclose()


def _parsed(url: str) -> httpx.URL:
    try:
        return httpx.URL(url)
    except httpx.InvalidURL:
        raise ConfigError(f"server.content_filter.url: {origin_of(url)} is no address that can be asked") from None


class Screen:
    """Judges one text while it grows."""

    def __init__(self, content_filter: ContentFilter, model: str, stage: str) -> None:
        self._filter, self._model, self._stage = content_filter, model, stage
        self._starts = [0] * len(content_filter.patterns)
        self._num_judged = 0
        """Characters that the URL has approved, or would have: it failed open."""

    async def approve(self, text: str, *, is_whole: bool) -> int | None:
        """How many characters of the text so far may be shown; None where it is refused. UnavailableError where the
        filter fails closed."""
        num_approved = await self._search(text, is_whole)
        if num_approved is None or not self._filter.has_url:
            return num_approved
        new = text[self._num_judged :]
        if new and (is_whole or len(new) >= PIECE_CHARS or "\n" in new):
            try:
                if not await self._filter.ask(self._stage, text, self._model):
                    return None
            except NoVerdictError as error:
                self._filter.note_failure(error)
            self._num_judged = len(text)
        return min(num_approved, self._num_judged)

    async def _search(self, text: str, is_whole: bool) -> int | None:
        try:
            scan = await self._filter.patterns.scan(text, self._starts, is_whole=is_whole)
        except TimeoutError:
            self._filter.note_failure(NoVerdictError("a pattern takes too long"))
            return len(text)
        if scan.is_refused:
            return None
        self._starts = list(scan.starts)
        return scan.num_approved

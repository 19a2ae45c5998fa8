"""server.auth keys: who has a good key may use what its role allows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

from starlette.requests import Request

from tinycluster.serve.access import Level, permission_denied
from tinycluster.serve.errors import ErrorReply, HttpError
from tinycluster.serve.identity import Terms
from tinycluster.serve.key_form import key_in
from tinycluster.serve.key_ring import KeyRing, KeyStore, invalid_key
from tinycluster.serve.registry import ModelRegistry
from tinycluster.serve.wrong_keys import MAX_TRIES, WrongKeys

NOBODY = Terms("")


class KeyGuard:
    has_limits = True

    def __init__(
        self,
        store: KeyStore,
        registry: ModelRegistry,
        clock: Callable[[], float] = time.monotonic,
        max_wrong_keys: int = MAX_TRIES,
    ) -> None:
        def tell_engines(weights: Mapping[str, float]) -> None:
            for engine in registry.engines:
                engine.weigh_clients(weights)

        self._ring, self._wrong_keys, self._clock = (
            KeyRing(store, tell_engines, clock),
            WrongKeys(max_wrong_keys),
            clock,
        )

    async def terms(self, request: Request, level: Level) -> Terms:
        if level == "public":
            return NOBODY
        text = key_in(request.headers.raw)
        key = None if text is None else await self._ring.find(text)
        if key is None:
            raise self._refusal(request)
        if level == "admin" and key.role != "admin":
            raise permission_denied("This route needs a key of the role admin")
        return Terms(key.id, key.role, key.name, self._ring.account(key))

    def _refusal(self, request: Request) -> HttpError:
        if "authorization" not in request.headers:
            return _no_key()
        address = "" if request.client is None else request.client.host
        wait_s = self._wrong_keys.count(address, self._clock())
        if wait_s == 0:
            return invalid_key()
        retry = {"retry-after": str(math.ceil(wait_s))}
        message = "Too many wrong API keys have come from this address"
        return HttpError(ErrorReply(429, message, "rate_limit_exceeded", code="rate_limit_exceeded", headers=retry))


def _no_key() -> HttpError:
    message = "This request needs an API key, as Authorization: Bearer tc-…"
    return HttpError(ErrorReply(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"}))

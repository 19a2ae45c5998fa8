"""GET and POST /api/keys and DELETE /api/keys/{key_id} for admins, and GET /api/me for everybody with a key."""

from __future__ import annotations

import time
from functools import partial

from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response

from tinycluster.serve.access import permission_denied
from tinycluster.serve.body import read_as
from tinycluster.serve.errors import ErrorReply, HttpError
from tinycluster.serve.fields import validated
from tinycluster.serve.identity import terms_of
from tinycluster.serve.new_key import NewKey, create_key, shown
from tinycluster.serve.storage.keys import Keys


def add_key_routes(app: FastAPI) -> None:
    def repository() -> Keys:
        keys: Keys = app.state.storage.keys
        return keys

    def check_changes() -> None:
        # Where everybody is admin, a key that is made today would still be somebody's when keys are asked for.
        if not app.state.guard.has_limits:
            raise permission_denied(
                "Keys are made and revoked over HTTP only where server.auth is keys; use tinycluster keys"
            )

    @app.get("/api/me")
    async def me(request: Request) -> Response:
        terms = terms_of(request)
        auth = "keys" if app.state.guard.has_limits else "none"
        return JSONResponse({"auth": auth, "name": terms.name or None, "role": terms.role})

    @app.get("/api/keys")
    async def list_keys() -> Response:
        now_ms = time.time() * 1000
        return JSONResponse({"keys": [shown(key, now_ms) for key in await repository().list()]})

    @app.post("/api/keys")
    async def make_key(request: Request) -> Response:
        wanted = await read_as(partial(validated, NewKey), request)
        check_changes()
        kept, text = await create_key(repository(), wanted)
        return JSONResponse({**shown(kept, time.time() * 1000), "key": text}, headers={"cache-control": "no-store"})

    @app.delete("/api/keys/{key_id}")
    async def revoke_key(key_id: str) -> Response:
        check_changes()
        if await repository().revoke(key_id) is None:
            message = f"There is no key with the id {key_id[:64]!r}"
            raise HttpError(ErrorReply(404, message, param="key_id", code="not_found"))
        return JSONResponse({"id": key_id, "deleted": True})

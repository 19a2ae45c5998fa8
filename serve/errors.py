"""Every error as the object that OpenAI's clients read: {"error": {"message", "type", "param", "code"}}.

| status | type                  | code                              | when                                      |
|--------|-----------------------|-----------------------------------|-------------------------------------------|
| 400    | invalid_request_error | the error's own, or null          | a field is wrong, a prompt is too long    |
| 400    | invalid_request_error | content_filter                    | the content filter refuses the prompt     |
| 401    | invalid_request_error | invalid_api_key                   | no key, or a wrong one; WWW-Authenticate  |
| 403    | permission_denied     | permission_denied                 | access.py: the key's role is too little   |
| 403    | permission_denied     | foreign_origin                    | hosts.py: a web page of a stranger asks   |
| 404    | invalid_request_error | model_not_found, not_found        | no such model, object or route            |
| 405    | invalid_request_error | method_not_allowed                | with Allow                                |
| 408    | invalid_request_error | request_timeout                   | header or body did not come in time       |
| 408    | timeout               | deadline_exceeded                 | the request's own timeout is over         |
| 413    | invalid_request_error | content_too_large                 | the body is over the limit                |
| 415    | invalid_request_error | unsupported_media_type            | the body is not plain JSON                |
| 414    | invalid_request_error | uri_too_long                      | connection.py: before any route           |
| 421    | invalid_request_error | misdirected_request               | hosts.py: a Host that is not ours         |
| 429    | rate_limit_exceeded   | queue_full                        | with Retry-After                          |
| 429    | rate_limit_exceeded   | rate_limit_exceeded               | a key's limit, wrong keys of one address  |
| 431    | invalid_request_error | header_too_large                  | connection.py: before any route           |
| 500    | server_error          | internal_error                    | our fault; the cause is in the log only   |
| 501    | invalid_request_error | not_implemented                   | a method that nobody knows, CONNECT       |
| 503    | service_unavailable   | service_unavailable               | a rank was lost or the engine stops       |
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tinycluster.engine.errors import DeadlineError, QueueFullError, RequestError, TinyclusterError, UnavailableError

log = logging.getLogger(__name__)

RETRY_AFTER_UNAVAILABLE_S = 5


@dataclass(frozen=True)
class ErrorReply:
    status: int
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> bytes:
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return json.dumps({"error": error}).encode()

    def response(self) -> Response:
        return Response(self.body(), self.status, dict(self.headers), media_type="application/json")


class HttpError(TinyclusterError):
    """An error that only exists in HTTP: a media type, a body's size, a model's name in a path."""

    def __init__(self, reply: ErrorReply) -> None:
        super().__init__(reply.message)
        self.reply = reply


def model_not_found(name: str) -> HttpError:
    message = f"The model {json.dumps(name[:64])} does not exist; GET /v1/models lists the models served here"
    return HttpError(ErrorReply(404, message, param="model", code="model_not_found"))


def not_found(what: str, param: str) -> HttpError:
    """The same for what nobody has and for what somebody else has."""
    return HttpError(ErrorReply(404, f"There is no such {what}", param=param, code="not_found"))


def reply_for(error: Exception) -> ErrorReply:
    """The answer to any exception. What is not a TinyclusterError says nothing about its cause."""
    if isinstance(error, HttpError):
        return error.reply
    if isinstance(error, RequestError):
        return ErrorReply(400, error.message, param=error.param, code=error.code)
    if isinstance(error, QueueFullError):
        retry = {"retry-after": str(error.retry_after_s)}
        return ErrorReply(429, error.message, "rate_limit_exceeded", code="queue_full", headers=retry)
    if isinstance(error, DeadlineError):
        return ErrorReply(408, str(error), "timeout", code="deadline_exceeded")
    if isinstance(error, UnavailableError):
        retry = {"retry-after": str(RETRY_AFTER_UNAVAILABLE_S)}
        return ErrorReply(503, str(error), "service_unavailable", code="service_unavailable", headers=retry)
    if isinstance(error, HTTPException):
        return _reply_for_route(error)
    return ErrorReply(500, "The server failed to answer this request", "server_error", code="internal_error")


def _reply_for_route(error: HTTPException) -> ErrorReply:
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    if error.status_code == 404:
        return ErrorReply(404, "There is no such route", code="not_found", headers=headers)
    if error.status_code == 405:
        message = f"This route takes {headers.get('allow', 'another method')} only"
        return ErrorReply(405, message, code="method_not_allowed", headers=headers)
    return ErrorReply(error.status_code, str(error.detail), code="http_error", headers=headers)


async def answer_error(request: Request, error: Exception) -> Response:
    """The exception handler of the app for TinyclusterError and HTTPException."""
    if isinstance(error, HTTPException) and error.status_code == 405:
        error.headers = {"allow": ", ".join(sorted(_methods(request)))}
    return reply_for(error).response()


def _methods(request: Request) -> set[str]:
    """The methods of every route of this path: each route names only its own."""
    routes = [route for route in request.app.routes if route.matches(request.scope)[0] != Match.NONE]
    return {method for route in routes for method in route.methods or ()}


class ErrorBoundary:
    """The top of every route: an exception that nobody expected is logged and answered with a bare 500."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_started = False

        async def watched_send(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self._app(scope, receive, watched_send)
        except Exception as error:
            log.exception("%s %s failed", scope.get("method"), json.dumps(scope.get("path")))
            if has_started:
                raise
            await reply_for(error).response()(scope, receive, send)

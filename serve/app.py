"""All routes of a server: OpenAI's API, what the web pages ask, the pages, and the two health checks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from tinycluster.cluster.config import SamplingSettings
from tinycluster.cluster.driver import Engine
from tinycluster.engine.errors import TinyclusterError
from tinycluster.serve.access import OpenDoor, check_access
from tinycluster.serve.answer_runs import AnswerRuns
from tinycluster.serve.chat_routes import add_chat_routes
from tinycluster.serve.cluster_routes import add_cluster_routes
from tinycluster.serve.conversations import add_conversations_routes
from tinycluster.serve.disconnect import ClientGoneError
from tinycluster.serve.errors import ErrorBoundary, answer_error
from tinycluster.serve.exchange import Exchanges
from tinycluster.serve.generation_routes import add_generation_routes
from tinycluster.serve.hosts import HostGuard
from tinycluster.serve.key_routes import add_key_routes
from tinycluster.serve.limit_headers import LimitHeaders
from tinycluster.serve.metrics import add_metrics_routes
from tinycluster.serve.openapi import add_openapi_routes
from tinycluster.serve.registry import ModelRegistry
from tinycluster.serve.responses import add_responses_routes
from tinycluster.serve.responses_run import Runs
from tinycluster.serve.server_state import add_server_routes
from tinycluster.serve.sessions import add_session_routes
from tinycluster.serve.storage.database import Database
from tinycluster.serve.storage.storage import Storage
from tinycluster.serve.tokenize import add_tokenize_routes
from tinycluster.serve.ui_routes import add_ui_routes


def create_app(registry: ModelRegistry) -> FastAPI:
    """The ASGI application over the registry's models, which may be added later (requests get 503 until then)."""
    runs, responses = AnswerRuns(), Runs()

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncGenerator[None]:
        yield
        await asyncio.gather(runs.end(), responses.end())
        if app.state.content_filter is not None:
            await app.state.content_filter.close()

    app = FastAPI(
        title="tinycluster",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        dependencies=[Depends(check_access)],
    )
    app.state.registry = registry
    app.state.allowed_hosts = ()
    app.state.log_file = None
    app.state.exchange_ends = []
    app.state.guard = OpenDoor()
    app.state.content_filter = None
    app.state.storage = Storage(Database())
    app.add_middleware(LimitHeaders)
    app.add_middleware(ErrorBoundary)
    app.add_middleware(HostGuard)
    app.add_middleware(Exchanges)
    app.add_exception_handler(TinyclusterError, answer_error)
    app.add_exception_handler(HTTPException, answer_error)
    app.add_exception_handler(ClientGoneError, _answer_nobody)
    # They are tried one after the other for each request: first what answers.
    add_generation_routes(app, registry)
    add_chat_routes(app, registry, runs)
    add_responses_routes(app, registry, responses)
    _add_status_routes(app, registry)
    add_metrics_routes(app, registry)
    add_server_routes(app, registry)
    add_tokenize_routes(app, registry)
    add_conversations_routes(app)
    add_cluster_routes(app, registry)
    add_session_routes(app, runs)
    add_key_routes(app)
    add_openapi_routes(app)
    add_ui_routes(app)
    return app


def _add_status_routes(app: FastAPI, registry: ModelRegistry) -> None:
    started = int(time.time())

    def card(engine: Engine) -> dict[str, Any]:
        fixed = {"object": "model", "created": started, "owned_by": "tinycluster"}
        return {
            "id": engine.name,
            **fixed,
            "max_model_len": engine.max_model_len,
            "vocab_size": engine.config.vocab_size,
            "default_sampling": {
                name: getattr(engine.default_sampling, name) for name in SamplingSettings.model_fields
            },
        }

    @app.get("/v1/models")
    async def list_models() -> Response:
        return JSONResponse({"object": "list", "data": [card(engine) for engine in registry.engines]})

    @app.get("/v1/models/{name:path}")
    async def show_model(name: str) -> Response:
        return JSONResponse(card(registry.get(name)))


async def _answer_nobody(_request: Request, _error: Exception) -> Response:
    return Response(status_code=499)

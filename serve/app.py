"""The routes of OpenAI's API, and the two health checks."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from tinycluster.cluster.driver import Engine
from tinycluster.engine.errors import TinyclusterError
from tinycluster.serve.disconnect import ClientGoneError
from tinycluster.serve.errors import ErrorBoundary, answer_error
from tinycluster.serve.generation_routes import add_generation_routes
from tinycluster.serve.hosts import HostGuard
from tinycluster.serve.metrics import add_metrics_routes
from tinycluster.serve.openapi import add_openapi_routes
from tinycluster.serve.registry import ModelRegistry
from tinycluster.serve.responses import add_responses_routes
from tinycluster.serve.server_state import add_server_routes
from tinycluster.serve.tokenize import add_tokenize_routes


def create_app(registry: ModelRegistry) -> FastAPI:
    """The ASGI application over the registry's models, which may be added later (requests get 503 until then)."""
    app = FastAPI(title="tinycluster", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.state.registry = registry
    app.state.allowed_hosts = ()
    app.add_middleware(ErrorBoundary)
    app.add_middleware(HostGuard)
    app.add_exception_handler(TinyclusterError, answer_error)
    app.add_exception_handler(HTTPException, answer_error)
    app.add_exception_handler(ClientGoneError, _answer_nobody)
    _add_status_routes(app, registry)
    add_generation_routes(app, registry)
    add_metrics_routes(app, registry)
    add_server_routes(app, registry)
    add_tokenize_routes(app, registry)
    add_responses_routes(app, registry)
    add_openapi_routes(app)
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
        }

    @app.get("/v1/models")
    async def list_models() -> Response:
        return JSONResponse({"object": "list", "data": [card(engine) for engine in registry.engines]})

    @app.get("/v1/models/{name:path}")
    async def show_model(name: str) -> Response:
        return JSONResponse(card(registry.get(name)))

    @app.get("/health")
    async def health() -> Response:
        """200 while the process answers; says nothing about the ranks."""
        return JSONResponse({"status": "alive"})

    @app.get("/health/ready")
    async def ready() -> Response:
        """200 if a real forward pass went through every rank of every model in the last 10 s, else 503."""
        registry.get(registry.engines[0].name if registry.engines else None)
        await asyncio.gather(*(asyncio.to_thread(engine.check_ready) for engine in registry.engines))
        return JSONResponse({"status": "ready"})


async def _answer_nobody(_request: Request, _error: Exception) -> Response:
    return Response(status_code=499)

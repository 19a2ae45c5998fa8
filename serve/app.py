"""The routes of OpenAI's API, and the two health checks."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from tinycluster.cluster.driver import Engine
from tinycluster.engine.errors import ContextLengthError, TinyclusterError
from tinycluster.serve.body import read_object
from tinycluster.serve.choices import Choices, Text, gather, submit
from tinycluster.serve.disconnect import ClientGoneError, unless_disconnected
from tinycluster.serve.errors import ErrorBoundary, answer_error
from tinycluster.serve.hosts import HostGuard
from tinycluster.serve.metrics import add_metrics_routes
from tinycluster.serve.prompts import chat_prompt, completion_prompts
from tinycluster.serve.protocol import ChatRequest, CompletionRequest, parse
from tinycluster.serve.registry import ModelRegistry
from tinycluster.serve.server_state import add_server_routes
from tinycluster.serve.stream import Chunks, EventStream, Kind
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
    _add_generation_routes(app, registry)
    add_metrics_routes(app, registry)
    add_server_routes(app, registry)
    add_tokenize_routes(app, registry)
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


def _add_generation_routes(app: FastAPI, registry: ModelRegistry) -> None:
    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        body = parse(ChatRequest, await read_object(request))
        engine = registry.get(body.model)
        prompts = [await chat_prompt(engine, body.template_messages())]
        return await _answer(request, body, engine, prompts, "chat.completion")

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        body = parse(CompletionRequest, await read_object(request))
        engine = registry.get(body.model)
        prompts = await completion_prompts(engine, body.prompt)
        try:
            return await _answer(request, body, engine, prompts, "text_completion")
        except ContextLengthError as error:
            raise ContextLengthError(error.message, param="prompt") from None


async def _answer(
    request: Request,
    body: ChatRequest | CompletionRequest,
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    kind: Kind,
) -> Response:
    choices = submit(engine, prompts, body.num_choices, body.sampling)
    head = {
        "id": f"{'chatcmpl' if kind == 'chat.completion' else 'cmpl'}-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": engine.name,
    }
    if body.stream:
        return EventStream(choices, Chunks(kind, head, body.include_usage))
    try:
        texts = await unless_disconnected(request.receive, gather(choices))
    finally:
        choices.abort()
    return JSONResponse(_whole(kind, head, texts, choices))


def _whole(kind: Kind, head: Mapping[str, Any], texts: Sequence[Text], choices: Choices) -> dict[str, Any]:
    listed = [_choice(kind, index, text) for index, text in enumerate(texts)]
    return {**head, "object": kind, "choices": listed, "usage": choices.usage()}


def _choice(kind: Kind, index: int, answer: Text) -> dict[str, Any]:
    text = "".join(answer.pieces)
    content = {"message": {"role": "assistant", "content": text}} if kind == "chat.completion" else {"text": text}
    ending = {"logprobs": None, "finish_reason": answer.finish_reason, "stop_reason": answer.stop_reason}
    return {"index": index, **content, **ending}


async def _answer_nobody(_request: Request, _error: Exception) -> Response:
    return Response(status_code=499)

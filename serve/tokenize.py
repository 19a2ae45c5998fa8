"""POST /tokenize and /detokenize, with vLLM's fields: what a text or a conversation is to the model, and back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from tinycluster.cluster.driver import Engine
from tinycluster.engine.errors import RequestError
from tinycluster.engine.sampling_rules import check_token_ids
from tinycluster.serve.body import read_as
from tinycluster.serve.fields import TokenId, validated
from tinycluster.serve.messages import Messages, template_messages
from tinycluster.serve.registry import ModelRegistry
from tinycluster.serve.unsupported import refuse_unsupported


class TokenizeRequest(BaseModel):
    """Either `prompt` or `messages`. What stands before a prompt in a completion is added by default."""

    model_config = ConfigDict(strict=True, frozen=True)

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)

    model: str | None = None
    tokens: list[TokenId]


def add_tokenize_routes(app: FastAPI, registry: ModelRegistry) -> None:
    @app.post("/tokenize")
    async def tokenize(request: Request) -> Response:
        asked = await read_as(_checked, request)
        return await asyncio.to_thread(_tokenize, registry.get(asked.model), asked)

    @app.post("/detokenize")
    async def detokenize(request: Request) -> Response:
        asked = await read_as(partial(validated, DetokenizeRequest), request)
        return await asyncio.to_thread(_detokenize, registry.get(asked.model), asked)


def _checked(body: Mapping[str, Any]) -> TokenizeRequest:
    refuse_unsupported(body)
    asked = validated(TokenizeRequest, body)
    if (asked.prompt is None) == (asked.messages is None):
        raise RequestError("exactly one of prompt and messages is required", "prompt")
    return asked


def _tokenize(engine: Engine, asked: TokenizeRequest) -> Response:
    tokens = _token_ids(engine, asked)
    strings = [engine.tokenizer.spelling(token) for token in tokens] if asked.return_token_strs else None
    limit = engine.max_model_len
    return _json({"count": len(tokens), "max_model_len": limit, "tokens": tokens, "token_strs": strings})


def _token_ids(engine: Engine, asked: TokenizeRequest) -> list[int]:
    if asked.messages is None:
        assert asked.prompt is not None
        return engine.tokenizer.encode(asked.prompt, add_special_tokens=asked.add_special_tokens is not False)
    return engine.tokenizer.apply_chat_template(
        template_messages(asked.messages), add_generation_prompt=asked.add_generation_prompt is not False
    )


def _detokenize(engine: Engine, asked: DetokenizeRequest) -> Response:
    check_token_ids(asked.tokens, engine.config.vocab_size, "tokens")
    return _json({"prompt": engine.tokenizer.decode(asked.tokens, skip_special_tokens=False)})


def _json(answer: dict[str, Any]) -> Response:
    return Response(json.dumps(answer), media_type="application/json")

"""POST /tokenize and /detokenize, with vLLM's fields: what a text or a conversation is to the model, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import Response

from tinycluster.cluster.driver import Engine
from tinycluster.engine.errors import RequestError
from tinycluster.engine.sampling_rules import check_token_ids
from tinycluster.serve.body import read_as
from tinycluster.serve.fields import Fields, TokenId, validated
from tinycluster.serve.generation_routes import rendered_prompt
from tinycluster.serve.messages import Messages
from tinycluster.serve.prompts import run_for_text
from tinycluster.serve.protocol import ChatRequest, parse
from tinycluster.serve.registry import ModelRegistry
from tinycluster.serve.unsupported import refuse_unsupported

TOKEN_CHARS = 16
"""Of an answer, about."""


class TokenizeRequest(Fields):
    """Either `prompt` or `messages`. What stands before a prompt in a completion is added by default."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    tools: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    return_token_strs: bool | None = None


_OF_A_CHAT = ("messages", "tools", "add_generation_prompt", "continue_final_message")


class DetokenizeRequest(Fields):
    model: str | None = None
    tokens: list[TokenId]


def add_tokenize_routes(app: FastAPI, registry: ModelRegistry) -> None:
    @app.post("/tokenize")
    async def tokenize(request: Request) -> Response:
        asked, chat = await read_as(parse_tokenize, request)
        engine = registry.get(asked.model)
        if chat is not None:
            tokens = await rendered_prompt(engine, chat)
        else:
            tokens = await run_for_text(len(asked.prompt or ""), lambda: _encode(engine, asked))
        return await run_for_text(
            TOKEN_CHARS * len(tokens), lambda: _answer(engine, tokens, bool(asked.return_token_strs))
        )

    @app.post("/detokenize")
    async def detokenize(request: Request) -> Response:
        asked = await read_as(parse_detokenize, request)
        engine = registry.get(asked.model)
        return await run_for_text(TOKEN_CHARS * len(asked.tokens), lambda: _detokenize(engine, asked))


def parse_tokenize(body: Mapping[str, Any]) -> tuple[TokenizeRequest, ChatRequest | None]:
    """With messages also the chat whose prompt is asked for."""
    refuse_unsupported(body)
    asked = validated(TokenizeRequest, body)
    if (asked.prompt is None) == (asked.messages is None):
        raise RequestError("exactly one of prompt and messages is required", "prompt")
    if asked.messages is None:
        return asked, None
    return asked, parse(ChatRequest, {name: body[name] for name in _OF_A_CHAT if name in body})


def parse_detokenize(body: Mapping[str, Any]) -> DetokenizeRequest:
    return validated(DetokenizeRequest, body)


def _encode(engine: Engine, asked: TokenizeRequest) -> list[int]:
    assert asked.prompt is not None
    return engine.tokenizer.encode(asked.prompt, add_special_tokens=asked.add_special_tokens is not False)


def _answer(engine: Engine, tokens: Sequence[int], has_strings: bool) -> Response:
    strings = [engine.tokenizer.spelling(token) for token in tokens] if has_strings else None
    limit = engine.max_model_len
    return _json({"count": len(tokens), "max_model_len": limit, "tokens": list(tokens), "token_strs": strings})


def _detokenize(engine: Engine, asked: DetokenizeRequest) -> Response:
    check_token_ids(asked.tokens, engine.config.vocab_size, "tokens")
    return _json({"prompt": engine.tokenizer.decode(asked.tokens, skip_special_tokens=False)})


def _json(answer: dict[str, Any]) -> Response:
    return Response(json.dumps(answer), media_type="application/json")

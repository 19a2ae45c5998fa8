"""POST /v1/chat/completions and /v1/completions."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from fastapi import FastAPI, Request
from starlette.responses import Response

from tinycluster.cluster.driver import Engine
from tinycluster.cluster.generation import Delta
from tinycluster.engine.errors import ContextLengthError
from tinycluster.engine.tool_calls import ToolCallParser, tool_call_parser
from tinycluster.serve.answer_form import AnswerForm, Kind
from tinycluster.serve.answers import gather, whole
from tinycluster.serve.body import read_as
from tinycluster.serve.choices import Choices, Deltas, submit
from tinycluster.serve.content_filter import ContentFilter
from tinycluster.serve.detailed_chunks import chunks_for
from tinycluster.serve.disconnect import unless_disconnected
from tinycluster.serve.identity import Terms, terms_of
from tinycluster.serve.prompts import chat_prompt, completion_prompts, truncated
from tinycluster.serve.protocol import ChatRequest, CompletionRequest, GenerationFields, parse
from tinycluster.serve.registry import ModelRegistry
from tinycluster.serve.screened import Screened
from tinycluster.serve.stream import EventStream
from tinycluster.serve.structured_output import compile_grammar


def add_generation_routes(app: FastAPI, registry: ModelRegistry) -> None:
    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        body = await read_as(partial(parse, ChatRequest), request)
        engine = registry.get(body.model)
        engine.check_room()
        prompt = await rendered_prompt(engine, body)
        choices = await submit_request(terms_of(request), body, engine, [prompt])
        with choices.aborted_on_error():
            form = _form(body, engine, [prompt], "chat.completion", registry.fingerprint(engine))
            form = replace(form, new_parser=call_parser(engine, body)) if body.parses_calls else form
            return await _answer(request, body, choices, form)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        body = await read_as(partial(parse, CompletionRequest), request)
        engine = registry.get(body.model)
        engine.check_room()
        prompts = await completion_prompts(engine, body.prompt, add_special_tokens=body.add_special_tokens is not False)
        prompts = [truncated(engine, prompt, body.truncate_prompt_tokens, body.limit()) for prompt in prompts]
        try:
            choices = await submit_request(terms_of(request), body, engine, prompts)
        except ContextLengthError as error:
            raise ContextLengthError(error.message, param="prompt") from None
        with choices.aborted_on_error():
            form = _form(body, engine, prompts, "text_completion", registry.fingerprint(engine))
            form = replace(form, echo=_echo(body, engine, prompts) if body.echo else None)
            return await _answer(request, body, choices, form)


async def rendered_prompt(engine: Engine, body: ChatRequest) -> Sequence[int]:
    """The token ids of a chat request's messages."""
    rendered = await chat_prompt(
        engine,
        body.messages,
        add_generation_prompt=body.has_generation_prompt,
        continue_final_message=bool(body.continue_final_message),
        tools=None if body.tool_use is None else body.tool_use.template_tools(),
    )
    return truncated(engine, rendered, body.truncate_prompt_tokens, body.limit())


def call_parser(engine: Engine, body: ChatRequest) -> Callable[[], ToolCallParser]:
    """Makes a parser for each answer of a request that may call tools."""
    use = body.tool_use
    assert use is not None
    return partial(tool_call_parser, engine.tokenizer.tool_format, use.names, parallel=use.is_parallel)


async def submit_request(
    terms: Terms, body: GenerationFields, engine: Engine, prompts: Sequence[Sequence[int]]
) -> Choices:
    """All candidates of all prompts, or an error as of engine.submit; HttpError 429 beyond the client's limits, and
    RequestError (content_filter) for what may not be asked."""
    if terms.exchange is not None:
        terms.exchange.tokenized(engine.name)
    rules = body.rules(engine.tokenizer.tool_format)
    grammar = None if rules is None else await compile_grammar(engine, rules.spec, param=rules.param)
    options = body.options(terms.client, grammar)
    if terms.content_filter is not None:
        await _check_prompts(terms.content_filter, body, engine, prompts)
    samplings = body.samplings(engine.tokenizer, engine.default_sampling)
    terms.check_running(len(prompts) * len(samplings))
    choices = submit(engine, prompts, samplings, options)
    if body.is_prompt_only:
        choices.prompt_only()
    if terms.content_filter is not None:
        is_held = not body.stream or bool(body.return_token_ids) or body.num_logprobs() is not None
        choices.screen(partial(_screened, terms.content_filter, engine.name, is_held))
    return terms.begin(choices)


async def _check_prompts(
    content_filter: ContentFilter, body: GenerationFields, engine: Engine, prompts: Sequence[Sequence[int]]
) -> None:
    param = "prompt" if isinstance(body, CompletionRequest) else "messages"
    for prompt in prompts:
        # The texts of long prompts are put together beside the event loop.
        text = await asyncio.to_thread(engine.tokenizer.decode, prompt)
        await content_filter.check_prompt(text, engine.name, param)


def _screened(
    content_filter: ContentFilter, model: str, is_held: bool, generation: Deltas, counted: Callable[[Delta], None]
) -> Deltas:
    return Screened(generation, content_filter.screen(model), counted, is_held=is_held)


def _form(
    body: GenerationFields, engine: Engine, prompts: Sequence[Sequence[int]], kind: Kind, fingerprint: str
) -> AnswerForm:
    head = {
        "id": f"{'chatcmpl' if kind == 'chat.completion' else 'cmpl'}-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": engine.name,
        "system_fingerprint": fingerprint,
    }
    return AnswerForm(
        kind=kind,
        head=head,
        tokenizer=engine.tokenizer,
        prompts=prompts,
        num_choices=body.num_choices,
        include_usage=body.include_usage,
        has_continuous_usage=body.has_continuous_usage,
        has_progress=bool(body.return_progress),
        has_token_ids=bool(body.return_token_ids),
        skip_special_tokens=body.skips_special_tokens,
        logprobs=body.num_shown_logprobs(),
        prompt_logprobs=body.prompt_logprobs,
    )


def _echo(body: CompletionRequest, engine: Engine, prompts: Sequence[Sequence[int]]) -> list[str]:
    """The prompts' texts: as they were sent, unless tokens were sent or cut off."""
    return [
        sent
        if isinstance(sent, str) and body.truncate_prompt_tokens is None
        else engine.tokenizer.decode(prompt, skip_special_tokens=body.skips_special_tokens)
        for sent, prompt in zip(body.prompt, prompts, strict=True)
    ]


async def _answer(request: Request, body: GenerationFields, choices: Choices, form: AnswerForm) -> Response:
    if body.stream:
        return EventStream(choices, chunks_for(form, choices, time.monotonic))
    try:
        answers = await unless_disconnected(request.receive, gather(choices, form))
    finally:
        choices.abort()
    return Response(whole(form, answers, choices), media_type="application/json")

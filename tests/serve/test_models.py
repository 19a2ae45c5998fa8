"""The list of models through the official client."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
from openai.types import Model

from tests.serve.conftest import StartServer
from tests.serve.fake_engine import FakeEngine
from tests.serve.strict_types import conforms
from tinycluster.engine.request import SamplingParams

NAMES = ["fake", "org/name", "a b%c?d"]


def options(start_server: StartServer) -> dict[str, Any]:
    url = start_server(*(FakeEngine(name) for name in NAMES))
    return {"base_url": f"{url}/v1", "api_key": "none", "max_retries": 0}


def test_models_are_listed_in_the_order_of_the_configuration_and_found_by_any_name(start_server: StartServer) -> None:
    with openai.OpenAI(**options(start_server)) as api:
        listed = api.models.list().data
        assert [model.id for model in listed] == NAMES
        for model in listed:
            conforms(Model, model.to_dict())
            assert api.models.retrieve(model.id) == model
        with pytest.raises(openai.NotFoundError) as refused:
            api.models.retrieve("other")
        assert refused.value.code == "model_not_found"


def test_a_models_own_sampling_is_listed_and_used_on_every_route(start_server: StartServer) -> None:
    own = SamplingParams(temperature=0.2, top_k=20, top_p=0.9, min_p=0.05, repetition_penalty=1.1)
    engine = FakeEngine(default_sampling=own)
    with httpx.Client(base_url=start_server(engine), timeout=60) as client:
        listed = {"temperature": 0.2, "top_k": 20, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.1}
        assert client.get("/v1/models/fake").json()["default_sampling"] == listed
        message = {"role": "user", "content": "hi"}
        bodies = {
            "/v1/chat/completions": {"messages": [message]},
            "/v1/completions": {"prompt": "hi", "max_tokens": 5},
            "/v1/responses": {"input": "hi"},
            "/api/chat": {"input": "hi", "stream": False},
        }
        answers = {path: client.post(path, json=body) for path, body in bodies.items()}
        assert [answer.status_code for answer in answers.values()] == [200] * 4
        response = answers["/v1/responses"].json()
        assert (response["temperature"], response["top_p"]) == (0.2, 0.9)
        asked = client.post("/v1/responses", json={"input": "hi", "temperature": 0}).json()
        assert (asked["temperature"], asked["top_p"]) == (0, 0.9)
    used = [replace(sampling, max_tokens=None) for sampling in engine.submitted]
    assert used == [*[own] * 4, replace(own, temperature=0)]


def test_the_asynchronous_client_lists_and_finds_models(start_server: StartServer) -> None:
    async def use() -> None:
        async with openai.AsyncOpenAI(**options(start_server)) as api:
            assert [model.id async for model in api.models.list()] == NAMES
            assert (await api.models.retrieve("org/name")).id == "org/name"

    asyncio.run(use())

"""The list of models through the official client."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from openai.types import Model

from tests.serve.conftest import StartServer
from tests.serve.fake_engine import FakeEngine
from tests.serve.strict_types import conforms

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


def test_the_asynchronous_client_lists_and_finds_models(start_server: StartServer) -> None:
    async def use() -> None:
        async with openai.AsyncOpenAI(**options(start_server)) as api:
            assert [model.id async for model in api.models.list()] == NAMES
            assert (await api.models.retrieve("org/name")).id == "org/name"

    asyncio.run(use())

"""What applications do with LangChain's ChatOpenAI, against the server at argv[1]; AssertionError where it differs.

A program of its own: what LangChain imports warns.
"""

from __future__ import annotations

import asyncio
import sys

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI


def main(url: str) -> None:
    models = [chat_model(url, uses_responses=uses_responses) for uses_responses in (False, True)]
    for model in models:
        calls(model)
    asyncio.run(all_asynchronous_calls(models))


def chat_model(url: str, *, uses_responses: bool) -> ChatOpenAI:
    return ChatOpenAI(
        base_url=f"{url}/v1",
        api_key="none",  # type: ignore[arg-type]
        model="fake",
        max_retries=0,
        use_responses_api=uses_responses,
    )


def calls(model: ChatOpenAI) -> None:
    answer = model.invoke("hello")
    assert answer.text == "hello", answer
    assert answer.usage_metadata is not None
    assert (answer.usage_metadata["input_tokens"], answer.usage_metadata["output_tokens"]) == (5, 5), answer
    turns = [SystemMessage("be brief"), HumanMessage("one"), AIMessage("two"), HumanMessage("three")]
    assert model.invoke(turns).text == "three"
    chunks = list(model.stream("abc"))
    assert [chunk.text for chunk in chunks if chunk.text] == ["a", "b", "c"], chunks


async def all_asynchronous_calls(models: list[ChatOpenAI]) -> None:
    for model in models:
        await asynchronous_calls(model)


async def asynchronous_calls(model: ChatOpenAI) -> None:
    assert (await model.ainvoke("hello")).text == "hello"
    assert "".join([chunk.text async for chunk in model.astream("abc")]) == "abc"
    answers = await model.abatch(["one", "two"])
    assert [answer.text for answer in answers] == ["one", "two"]


main(sys.argv[1])

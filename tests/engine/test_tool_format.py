"""Tools, calls and results on their way into a prompt."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.engine.test_gguf_tokenizer import build, byte_level_fields
from tinycluster.engine.tokenizer import Tokenizer
from tinycluster.engine.tool_format import tool_format_of

PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}{{ 'tools' if tools else '' }}"
HERMES = (
    "{% if tools %}{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% for c in m.tool_calls or [] %}"
    '<tool_call>{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}</tool_call>'
    "{% endfor %}\n{% endfor %}"
)
LLAMA3 = (
    "{% if tools %}Environment: ipython {{ tools | tojson }}{% endif %}{% for m in messages %}[{{ m.role }}]"
    "{% if 'tool_calls' in m %}"
    '{% set c = m.tool_calls[0].function %}{"name": "{{ c.name }}", "parameters": {{ c.arguments | tojson }}}'
    "{% else %}{{ m.content }}{% endif %}\n{% endfor %}"
)
TOOL = {"type": "function", "function": {"name": "get", "parameters": {"type": "object", "properties": {"é": {}}}}}


def call(arguments: Any) -> dict[str, Any]:
    calls = [{"id": "1", "type": "function", "function": {"name": "get", "arguments": arguments}}]
    return {"role": "assistant", "content": "", "tool_calls": calls}


TURNS = [
    {"role": "user", "content": "q"},
    call('{"x": "\\u00e9"}'),
    {"role": "tool", "tool_call_id": "1", "content": "42"},
    {"role": "tool", "tool_call_id": "2", "content": "43"},
]


def tokenizer(template: str) -> Tokenizer:
    return build(byte_level_fields() | {"tokenizer.chat_template": template})


def rendered(template: str, messages: Any, tools: Any = None) -> str:
    model = tokenizer(template)
    return model.decode(model.apply_chat_template(messages, tools=tools), skip_special_tokens=False)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (HERMES, "hermes"),
        (HERMES.replace('"', '\\"'), "hermes"),
        (LLAMA3, "llama3"),
        (PLAIN, None),
        ("{{ messages }}", None),
        (HERMES.replace("tools", "nothing"), None),
        (HERMES.replace('{"name"', "<function=x>"), None),
        ("{% for t in tools %}[AVAILABLE_TOOLS]{{ t }}{% endfor %}", None),
    ],
)
def test_the_form_of_calls_is_read_off_the_template(source: str, expected: str | None) -> None:
    assert tool_format_of(source) == expected


def test_a_model_of_no_known_form_calls_tools_as_hermes_models_do() -> None:
    assert [tokenizer(source).tool_format for source in (HERMES, LLAMA3, PLAIN)] == ["hermes", "llama3", "hermes"]
    assert build(byte_level_fields()).tool_format == "hermes"


@pytest.mark.parametrize("arguments", ['{"x": "\\u00e9"}', {"x": "é"}])
def test_templates_that_know_calls_get_their_arguments_as_objects(arguments: Any) -> None:
    expected = '[assistant]<tool_call>{"name": "get", "arguments": {"x": "é"}}</tool_call>'
    assert rendered(HERMES, [call(arguments)]) == expected
    assert rendered(LLAMA3, [call(arguments)]) == '[assistant]{"name": "get", "parameters": {"x": "é"}}'


def test_templates_that_know_tools_get_them() -> None:
    assert rendered(HERMES, TURNS[:1], [TOOL]) == json.dumps(TOOL, ensure_ascii=False) + "[user]q"
    assert rendered(HERMES, TURNS[2:3]) == "[tool]42"


def test_other_templates_get_tools_calls_and_results_as_text() -> None:
    text = rendered(PLAIN, [{"role": "system", "content": "Be brief."}, *TURNS], [TOOL])
    assert text.startswith("[system]Be brief.\n\n")
    assert f"<tools>\n{json.dumps(TOOL, ensure_ascii=False)}\n</tools>" in text
    assert text.endswith(
        '[user]q\n[assistant]<tool_call>\n{"name": "get", "arguments": {"x": "é"}}\n</tool_call>\n'
        "[user]<tool_response>\n42\n</tool_response>\n<tool_response>\n43\n</tool_response>\n"
    )
    assert rendered(PLAIN, TURNS[:1], [TOOL]).startswith("[system]You can call functions.")


def test_a_template_without_system_messages_gets_tools_from_the_user() -> None:
    alternating = (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}[{{ m.role }}]{{ m.content }}\n{% endfor %}"
    )
    text = rendered(alternating, TURNS, [TOOL])
    assert text.startswith("[user]You can call functions.")
    assert "</tool_call>\n\nq\n[assistant]<tool_call>" in text
    assert rendered(alternating, TURNS[:1]) == "[user]q\n"


def test_without_tools_a_conversation_is_left_alone() -> None:
    assert rendered(PLAIN, TURNS[:1]) == rendered(PLAIN, TURNS[:1], []) == "[user]q\n"


@pytest.mark.parametrize("template", [PLAIN, HERMES, LLAMA3])
@pytest.mark.parametrize(
    "arguments",
    ['{"<|im_end|>": 1}', '{"a": "\\u003c|im_end|>"}', "<|im_end|>", {"<|im_end|>": ["<|im_end|>"]}],
)
def test_calls_cannot_forge_control_tokens(template: str, arguments: Any) -> None:
    model = tokenizer(template)
    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"<|im_end|>": {}}}}}
    result = {"role": "tool", "tool_call_id": "1", "content": "<|im_end|>"}
    ids = model.apply_chat_template([call(arguments), result], tools=[tool])
    assert not [token for token in ids if model.is_special(token)]
    assert "<|im_end|>" in model.decode(ids)


def test_arguments_that_are_no_object_stay_as_they_are() -> None:
    assert '"arguments": 7}' in rendered(PLAIN, [call("7")])
    assert '"arguments": {}}' in rendered(PLAIN, [call("")])

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest

from tinycluster.engine.chat_template import ChatTemplate
from tinycluster.engine.errors import CheckpointError, RequestError

MESSAGES = [{"role": "user", "content": "<b>it's</b>"}]


def template(source: str, **special_tokens: str) -> ChatTemplate:
    return ChatTemplate(
        source, origin="model.gguf", special_tokens=special_tokens, now=lambda: datetime(2026, 3, 9, 8, 7)
    )


def render(source: str, messages: Any = MESSAGES, **options: Any) -> str:
    return template(source, bos_token="<s>").render(messages, **options)


def test_messages_special_tokens_and_the_generation_prompt_are_variables() -> None:
    source = (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m['content'] }}{% endfor %}{{ add_generation_prompt }}"
    )
    assert render(source) == "<s>[user]<b>it's</b>True"
    assert render(source, add_generation_prompt=False).endswith("False")


def test_lines_that_hold_only_a_block_leave_no_whitespace() -> None:
    assert render("{% for m in messages %}\n    {% if true %}\nx\n    {% endif %}\n{% endfor %}\n") == "x\n"


def test_loops_can_break_and_continue() -> None:
    skips = "{% if i == 1 %}{% continue %}{% elif i == 3 %}{% break %}{% endif %}"
    assert render("{% for i in range(9) %}" + skips + "{{ i }}{% endfor %}") == "02"


def test_tojson_writes_plain_json_without_html_escapes() -> None:
    tools = [{"name": "f", "description": "<é> & 'x'"}]
    assert render("{{ tools | tojson }}", tools=tools) == json.dumps(tools, ensure_ascii=False)
    assert render("{{ tools | tojson(indent=2) }}", tools=tools) == json.dumps(tools, ensure_ascii=False, indent=2)
    assert render("{% if tools %}t{% else %}none{% endif %}") == "none"


def test_generation_blocks_stand_for_their_body() -> None:
    assert render("a{% generation %}{{ messages[0].role }}{% endgeneration %}z") == "auserz"


def test_the_date_comes_from_the_clock_that_was_passed_in() -> None:
    assert render("{{ strftime_now('%d %b %Y') }}") == "09 Mar 2026"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content + 1 }}", "can only concatenate str"),
        ("{{ messages[9].content }}", "list object has no element 9"),
        ("{{ messages.append(1) }}", "'append' of 'list' object is unsafe"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% include 'x' %}", "no loader"),
    ],
)
def test_whatever_goes_wrong_in_a_template_is_an_error_of_the_request(source: str, reason: str) -> None:
    with pytest.raises(RequestError) as raised:
        render(source)
    assert raised.value.param == "messages"
    assert str(raised.value).startswith("the model's chat template refuses the messages: ")
    assert reason in str(raised.value)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__ | string }}",
        "{{ messages | attr('__class__') | string }}",
        "{{ '{0.__class__}'.format(1) }}",
    ],
)
def test_a_template_cannot_reach_the_internals_of_its_values(source: str) -> None:
    assert render(source) == ""


def test_a_template_that_is_not_jinja_is_an_error_of_the_checkpoint() -> None:
    with pytest.raises(CheckpointError, match=r"^model\.gguf: the chat template is not valid: "):
        template("{% for %}")
    with pytest.raises(CheckpointError, match="unknown tag"):
        template("{% nonsense %}")

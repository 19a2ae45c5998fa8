"""What a chat template may do: all that templates do, and nothing that would take the server's time or memory."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tests.engine.memory import forget_peak, peak_bytes
from tinycluster.engine.chat_template import ChatTemplate
from tinycluster.engine.errors import CheckpointError, RequestError

MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "alpha"},
    {"role": "assistant", "content": ["x", "y"]},
    {"role": "user", "content": "<é>"},
]
FEATURES = r"""
{%- macro render(content, n=1) -%}
  {%- if content is string %}{{ content|upper|replace('A','b') }}{% else %}{{ content|join(', ') }}{% endif %}[{{ n }}]
{%- endmacro %}
{%- macro wrap() %}({{ caller(5) }}){% endmacro %}
{%- set image = namespace(count=0) %}
{% for m in messages if m.role != 'system' %}
{{ loop.index }}/{{ loop.length }} {{ loop.revindex }} {{ loop.last }} {{ loop.first }} {{ render(m.content) }}
{{ render(m.content, n=loop.index0) }} {{ m.get('x', 'none') }} {{ m.items()|list|length }} {{ m.role.split('s') }}
{%- set image.count = image.count + 1 %}
{% else %}nobody{% endfor %}
{{ image.count }} {{ messages|map(attribute='role')|list }} {{ messages[::-1]|map(attribute='role')|join('|') }}
{{ messages|selectattr('role','equalto','user')|list|length }}
{{ messages|rejectattr('role','in',['user'])|map(attribute='content')|first }}
{% set x %}block {{ messages[-1].content[:2] }}{% endset %}{{ x ~ 1 ~ none }}{{ undefined_thing }}
{{ (1,2) in [(1,2)] }} {{ {'a': 1, 'b': [1,2]} }} {{ {'b':1,'a':2}|dictsort }} {{ 'a,b'.split(',') }} {{ -3|abs }}
{{ "%s-%05d" % ('a', 3) }} {{ 'x{}y'.format(1) }} {{ 'a' * 3 }} {{ [1,2] + [3] }} {{ 2 ** 10 }} {{ 7 // 2 }} {{ 7 % 4 }}
{% filter upper %}abc{% endfilter %}{% call(v) wrap() %}{{ v }}{% endcall %}
{% for a, b in [(1,2),(3,4)] %}{{ a }}{{ b }};{% endfor %}
{% for k, v in {'k': 'v'}.items() %}{{ k }}={{ v }}{% endfor %}
{% for c in 'abc'|reverse %}{{ c }}{% endfor %}{{ ['b','a']|sort|first }} {{ [3,1]|max }} {{ 'a' < 'b' < 'c' }}
{{ messages|length > 1 and not false }} {{ '  x '|trim }} {{ 'line\nline2'|indent(2) }} {{ [1,1,2]|unique|list }}
{{ range(3)|list }} {{ '5'|int + 1 }} {{ 'q'|default('d') }} {{ nothing|default('d') }} {{ "ab".replace("a","c") }}
{{ ", ".join(["p","q"]) }} {{ "title case"|title }} {{ messages[0]['role'].upper() }} {{ ["a"].index("a") }}
{{ loop is defined }} {{ none is none }} {{ 3 is divisibleby 3 }} {{ [] is iterable }} {{ messages is mapping }}
{{ 'x' if 1 == 1.0 else 'y' }} {{ 'b' in 'abc' }} {{ 'z' not in messages[0] }} {{ [1, 2][1:] }} {{ 1.5|int }}
{{ cycler('a', 'b').next() }} {% with z = 3 %}{{ z }}{% endwith %} {{ dict(a=1).a }} {{ 'ß'|upper }} {{ [[1]]|string }}
"""


def render(source: str, messages: Any = MESSAGES) -> str:
    return ChatTemplate(source, origin="model.gguf", special_tokens={}).render(messages)


def test_templates_mean_what_they_mean_in_jinja() -> None:
    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    expected = plain.from_string(FEATURES).render(messages=MESSAGES)
    assert render(FEATURES) == expected
    assert "Be brief." in expected


def test_long_conversations_are_rendered() -> None:
    source = "{% for m in messages %}{{ '<' + m.role + '>' + m.content | trim }}{{ messages | length }}{% endfor %}"
    turns = [{"role": "user", "content": "word " * 20}] * 5000
    assert render(source, turns) == ("<user>" + ("word " * 20).strip() + "5000") * 5000


def test_a_message_of_millions_of_characters_is_rendered() -> None:
    source = "{% for m in messages %}{% if 'x' not in m.content %}{{ m.content | trim + '.' }}{% endif %}{% endfor %}"
    assert len(render(source, [{"role": "user", "content": "word " * 2_000_000}])) == 10_000_000


HUNDRED_THOUSAND = "{% for i in range(100000) %}"
GROWING = "{% set ns = namespace(x='a', l=[1], m=[1], t=(1,), n=3) %}{% for i in range(60) %}"
DOUBLED = (
    GROWING + "{% set ns.l = [ns.l, ns.l] %}{% set ns.m = [ns.m, ns.m] %}{% set ns.t = (ns.t, ns.t) %}{% endfor %}"
)
BOMBS = {
    "a large range": "{% for i in range(10**9) %}x{% endfor %}",
    "loops in loops": HUNDRED_THOUSAND * 2 + "{% endfor %}{% endfor %}",
    "conditions of loops": HUNDRED_THOUSAND + "{% for j in range(100000) if false %}{% endfor %}{% endfor %}",
    "10 MB of literal text": "{% for i in range(1000) %}" + "x" * 11_000 + "{% endfor %}",
    "10 MB of a variable": "{% set x = 'a' * 1000000 %}{% for i in range(11) %}{{ x }}{% endfor %}",
    "text times a number": "{{ 'a' * 10**9 }}",
    "a number times a list": "{{ (10**9 * [0]) | length }}",
    "powers": "{{ (10**9) ** (10**3) }}",
    "products": GROWING + "{% set ns.n = ns.n * ns.n %}{% endfor %}{{ ns.n }}",
    "a width in %": "{{ '%1000000000d' % 1 }}",
    "a width from arguments in %": "{{ '%*d' % (1000000000, 1) }}",
    "a width in format": "{{ '{:>1000000000}'.format(1) }}",
    "a width from arguments in format": "{{ '{:{}}'.format(1, 1000000000) }}",
    "a date with a width": "{{ strftime_now('%1000000000d') }}",
    "doubled text": GROWING + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "added text": GROWING + "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubled lists, printed": DOUBLED + "{{ ns.l }}",
    "doubled lists, as JSON": DOUBLED + "{{ ns.l | tojson }}",
    "doubled lists, compared": DOUBLED + "{{ ns.l == ns.m }}",
    "doubled lists, tested": DOUBLED + "{{ ns.l is eq(ns.m) }}",
    "doubled lists, searched": DOUBLED + "{{ [ns.l].index(ns.m) }}",
    "doubled lists, sorted": DOUBLED + "{{ [ns.l, ns.m] | sort }}",
    "doubled tuples as keys": DOUBLED + "{{ {ns.t: 1} }}",
    "doubled tuples as subscripts": DOUBLED + "{{ {1: 1}[ns.t] }}",
    "doubled tuples, looked up": DOUBLED + "{{ {1: 1}.get(ns.t) }}",
    "doubled namespaces": GROWING + "{% set ns.x = namespace(a=ns.x, b=ns.x) %}{% endfor %}{{ ns.x }}",
    "namespaces in lists": GROWING + "{% set ns.x = namespace(a=ns.x, b=ns.x) %}{% endfor %}{{ [ns.x] | string }}",
    "padding by a filter": "{{ 'a' | center(10**9) }}",
    "padding by a method": "{{ 'a'.ljust(10**9) }}",
    "indentation": "{{ 'a\n' | indent(10**9) }}",
    "indentation of many lines": "{{ ('a\n' * 100000) | indent(256) }}",
    "indentation of JSON": "{{ [[1]] | tojson(indent=10**9) }}",
    "replacement by a method": "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "replacement by a filter": "{{ ('a' * 100000) | replace('', 'b' * 100000) }}",
    "joined by a filter": "{{ (['a' * 100000] * 100000) | join }}",
    "joined by a method": "{{ ('a' * 100000).join(range(100000) | list) }}",
    "filler text": "{{ lipsum(n=10**9) }}",
    "batches": "{{ [1] | batch(10**9, 'x') | list }}",
    "bytes of a number": "{{ (1).to_bytes(10**9, 'big') }}",
    "macros that call themselves": "{% macro f(n) %}{{ f(n-1) }}{{ f(n-1) }}{% endmacro %}{{ f(60) }}",
    "blocks that call themselves": "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "slices": "{% set x = 'a' * 4000000 %}" + HUNDRED_THOUSAND + "{% set y = x[1:] %}{% endfor %}",
    "searches": "{% set x = 'a' * 4000000 %}" + HUNDRED_THOUSAND + "{% set y = 'b' in x %}{% endfor %}",
    "filters of long text": "{% set x = 'a' * 4000000 %}" + HUNDRED_THOUSAND + "{% set y = x | trim %}{% endfor %}",
    "filters of long lists": HUNDRED_THOUSAND + "{% set y = range(100000) | list %}{% endfor %}",
    "filters of generators": HUNDRED_THOUSAND + "{{ 100001 in range(100000) | select }}{% endfor %}",
    "output kept back": "{% set x %}" + HUNDRED_THOUSAND + "{{ 'a' * 1000 }}{% endfor %}{% endset %}",
    "another file": "{% include 'x' %}",
    "an import": "{% import '/etc/passwd' as x %}",
    "classes": "{{ ''.__class__.__mro__ }}",
    "classes by a filter": "{{ (''|attr('__class__')).x }}",
    "classes by a format": "{{ ('{0.__class__}' | attr('format'))(1).x.y }}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_an_error_of_the_request(name: str) -> None:
    forget_peak()
    before = peak_bytes()
    with pytest.raises(RequestError, match=r"^the model's chat template refuses the messages: ") as raised:
        render(BOMBS[name])
    assert raised.value.param == "messages"
    assert len(raised.value.message) < 400
    assert peak_bytes() - before < 64 * 2**20


@pytest.mark.parametrize(
    "source",
    [
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{% for i in [1] %}" * 100 + "{% endfor %}" * 100,
        "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
        "{{ " + "9" * 5000 + " }}",
        "x" * 10_000_000,
    ],
)
def test_a_template_that_python_cannot_compile_is_an_error_of_the_checkpoint(source: str) -> None:
    with pytest.raises(CheckpointError, match=r"^model\.gguf: the chat template is "):
        render(source)


def test_what_a_rendering_may_spend_does_not_depend_on_others() -> None:
    template = ChatTemplate("{% for i in range(90000) %}{% endfor %}ok", origin="m", special_tokens={})
    assert {template.render(MESSAGES) for _ in range(3)} == {"ok"}


def test_json_is_written_as_python_writes_it() -> None:
    value = {"b": [1, "é"], "a": None}
    for arguments, options in (("", {}), ("indent=2", {"indent": 2}), ("sort_keys=true", {"sort_keys": True})):
        written = render("{{ messages | tojson(" + arguments + ") }}", [value])
        assert written == json.dumps([value], ensure_ascii=False, **options)

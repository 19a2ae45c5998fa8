"""Fields of OpenAI's and vLLM's requests that would change the answer and are not supported.

Ignoring one of them would give an answer that the client did not ask for, so every value but a neutral one is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tinycluster.engine.errors import RequestError

Neutral = Mapping[str, tuple[Any, ...]]
"""The neutral values of each field; null is neutral everywhere."""

EVERYWHERE: Neutral = {
    # A template is a program: only the model's own is run, with variables of ours.
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "use_beam_search": (False,),
}
CHAT_NEUTRAL: Neutral = {
    **EVERYWHERE,
    "add_special_tokens": (False,),
    "audio": (),
    "best_of": (1,),
    "documents": ([],),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "web_search_options": (),
}
COMPLETION_NEUTRAL: Neutral = {
    **EVERYWHERE,
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
}


def refuse_unsupported(body: Mapping[str, Any], neutral: Neutral = EVERYWHERE) -> None:
    """RequestError for the first field with a value that is neither null nor neutral."""
    for name, values in neutral.items():
        value = body.get(name)
        if value is not None and not any(_same(value, item) for item in values):
            raise RequestError(f"{name} is not supported", param=name)


def _same(value: Any, neutral: Any) -> bool:
    # 0 == False and 1 == True in Python, not in JSON.
    return type(value) is type(neutral) and bool(value == neutral)

"""Fields of OpenAI's and vLLM's requests that would change the answer and are not supported.

Ignoring one of them would give an answer that the client did not ask for, so every value but a neutral one is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tinycluster.engine.errors import RequestError

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "allowed_token_ids": ([],),
    "audio": (),
    "bad_words": ([],),
    "best_of": (1,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "echo": (False,),
    "frequency_penalty": (0, 0.0),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "logit_bias": ({},),
    "logprobs": (False,),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "prediction": (),
    "presence_penalty": (0, 0.0),
    "prompt_logprobs": (),
    "repetition_penalty": (1, 1.0),
    "response_format": ({"type": "text"},),
    "return_token_ids": (False,),
    "skip_special_tokens": (True,),
    "structured_outputs": ({},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "web_search_options": (),
}


def refuse_unsupported(body: Mapping[str, Any]) -> None:
    """RequestError for the first field with a value that is neither null nor neutral."""
    for name, neutral in _NEUTRAL.items():
        value = body.get(name)
        if value is not None and not any(_same(value, item) for item in neutral):
            raise RequestError(f"{name} is not supported", param=name)


def _same(value: Any, neutral: Any) -> bool:
    # 0 == False and 1 == True in Python, not in JSON.
    return type(value) is type(neutral) and bool(value == neutral)

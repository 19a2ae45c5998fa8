"""Log-probabilities in answers of /v1/responses.

The objects of an answer are dicts, in which `logprobs` stay empty: the entries are JSON text from the beginning (see
serve/logprobs.py) and are put in where an object is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tinycluster.cluster.generation import Delta
from tinycluster.engine.tokenizer import Tokenizer
from tinycluster.serve.logprobs import chat_logprobs

Written = Mapping[str, str]
"""The entries of each message, separated by commas, by the message's id."""
_NONE = '"logprobs": []'


class MessageLogprobs:
    """Those of an answer's messages. Entries wait for the text that their tokens begin; those of a call are dropped.

    `num_top` is the number of most likely tokens to show with each.
    """

    def __init__(self, tokenizer: Tokenizer, num_top: int) -> None:
        self._tokenizer, self._num_top = tokenizer, num_top
        self._waiting: list[str] = []
        self._shown: list[str] = []
        self.written: dict[str, str] = {}

    @property
    def has_waiting(self) -> bool:
        return bool(self._waiting)

    def add(self, delta: Delta) -> None:
        if delta.logprobs:
            self._waiting.append(chat_logprobs(self._tokenizer, delta.token_ids, delta.logprobs, self._num_top))

    def take(self) -> str:
        """The entries of the text that is shown next."""
        taken = ", ".join(self._waiting)
        self._waiting.clear()
        if taken:
            self._shown.append(taken)
        return taken

    def drop(self) -> None:
        self._waiting.clear()

    def end(self, message_id: str) -> None:
        """This message has all it will have."""
        self.written[message_id] = ", ".join(self._shown)
        self._shown.clear()


def filled(text: str, entries: str) -> str:
    """An object with one empty `logprobs`, as JSON, with these entries. Within strings quotes are escaped."""
    return text.replace(_NONE, f'"logprobs": [{entries}]') if entries else text


def encoded(response: Mapping[str, Any], written: Written) -> str:
    """A response as JSON."""
    if not any(written.values()):
        return json.dumps(response)
    # Another field, like the tools, may have a key of this name.
    output = ", ".join(filled(json.dumps(item), written.get(item["id"], "")) for item in response["output"])
    fields = (
        f"{json.dumps(name)}: {f'[{output}]' if name == 'output' else json.dumps(value)}"
        for name, value in response.items()
    )
    return f"{{{', '.join(fields)}}}"

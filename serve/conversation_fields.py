"""The requests of /v1/conversations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from tinycluster.engine.errors import RequestError
from tinycluster.serve.fields import Fields
from tinycluster.serve.responses_fields import Metadata
from tinycluster.serve.responses_items import InputItem

MAX_ITEMS_AT_ONCE = 20
INCLUDABLE = (
    *("file_search_call.results", "web_search_call.results", "web_search_call.action.sources"),
    *("message.input_image.image_url", "computer_call_output.output.image_url", "code_interpreter_call.outputs"),
    *("reasoning.encrypted_content", "message.output_text.logprobs"),
)
"""What a client may ask to see of items: nothing that items have here."""


class CreateConversation(Fields):
    items: Annotated[list[InputItem], Field(max_length=MAX_ITEMS_AT_ONCE)] | None = None
    metadata: Metadata | None = None


class UpdateConversation(Fields):
    """A null takes all metadata away."""

    metadata: Metadata | None


class CreateItems(Fields):
    items: Annotated[list[InputItem], Field(min_length=1, max_length=MAX_ITEMS_AT_ONCE)]


def check_include(names: Sequence[str]) -> None:
    for name in names:
        if name not in INCLUDABLE:
            raise RequestError(f"include must consist of {', '.join(INCLUDABLE)}, got {name[:64]!r}", "include")

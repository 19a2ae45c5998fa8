"""The models that one server answers for, chosen by the request's `model`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

from tinycluster.engine.errors import RequestError, UnavailableError
from tinycluster.engine.request import FinishReason, SamplingParams
from tinycluster.serve.errors import model_not_found


class Delta(Protocol):
    """What one step added to one generation (cluster/driver.py)."""

    @property
    def token_ids(self) -> tuple[int, ...]: ...
    @property
    def text(self) -> str: ...
    @property
    def finish_reason(self) -> FinishReason | None: ...
    @property
    def stop_reason(self) -> str | int | None: ...


class Generation(Protocol):
    def __aiter__(self) -> AsyncIterator[Delta]: ...
    def abort(self) -> None: ...


class Tokenizer(Protocol):
    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...
    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]]) -> list[int]: ...


class ServedModel(Protocol):
    """What the routes need of cluster/driver.py's Engine."""

    @property
    def name(self) -> str: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def max_model_len(self) -> int: ...
    def submit(self, prompt_token_ids: Sequence[int], sampling: SamplingParams) -> Generation: ...
    def check_ready(self) -> None: ...


class ModelRegistry:
    """Models by name, in the order of the configuration. Empty until the engines have started."""

    def __init__(self) -> None:
        self._models: dict[str, ServedModel] = {}

    def add(self, model: ServedModel) -> None:
        self._models[model.name] = model

    @property
    def models(self) -> tuple[ServedModel, ...]:
        return tuple(self._models.values())

    def get(self, name: str | None) -> ServedModel:
        """The model of this name. A request may leave the name out where only one model is served."""
        if not self._models:
            raise UnavailableError("The server is starting; no model is loaded yet")
        if name is None:
            if len(self._models) > 1:
                raise RequestError("model is required: this server has several models", param="model")
            return next(iter(self._models.values()))
        if name not in self._models:
            raise model_not_found(name)
        return self._models[name]

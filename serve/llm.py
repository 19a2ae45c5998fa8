"""The engine as a Python object: `LLM("configs/smollm2.yaml", local=True).generate(["Once upon a time"])`."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from tinycluster.cluster.config import Settings, load_settings
from tinycluster.cluster.driver import Engine
from tinycluster.cluster.generation import Delta, Generation
from tinycluster.cluster.launch import NewProgress, NoProgress, start_engine
from tinycluster.engine.errors import ConfigError, QueueFullError
from tinycluster.engine.request import FinishReason, RequestOptions, SamplingParams, TokenLogprobs
from tinycluster.engine.sampling_rules import check_sampling, check_token_ids
from tinycluster.serve.options import find_config

ChatMessages = Sequence[Mapping[str, Any]]
_SHORT_NAMES = {"tensor": "mesh.tensor", "pipeline": "mesh.pipeline"}


@dataclass(frozen=True)
class Completion:
    """One prompt's answer. `logits_sha256` is set with SamplingParams.return_logits_digest: SHA-256 over the float32
    logits of every generated step, in order. `logprobs` has one entry per generated token where the parameters ask for
    them, `prompt_logprobs` one for each of the prompt's but the first."""

    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    stop_reason: str | int | None = None
    logits_sha256: str | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()


class LLM:
    """One model of a configuration. A context manager; `close` ends its ranks.

    `config` is a YAML file, the name of a packaged configuration or Settings. Overrides are `local=True`, `tensor=3`,
    `pipeline=2`, or a setting's dotted path: `LLM("smollm2", **{"limits.max_running": 8})`.
    """

    def __init__(
        self,
        config: str | Path | Settings,
        *,
        model: str | None = None,
        local: bool = False,
        progress: NewProgress = NoProgress,
        **overrides: Any,
    ) -> None:
        settings = _settings(config, local, overrides)
        chosen = next((entry for entry in settings.models if model in (None, entry.name)), None)
        if chosen is None:
            names = ", ".join(entry.name for entry in settings.models)
            raise ConfigError(f"the configuration has no model {model!r}; it has {names}")
        self.engine: Engine = start_engine(chosen, settings, progress=progress)

    @property
    def default_sampling(self) -> SamplingParams:
        """Of the configuration and the model. `replace(llm.default_sampling, max_tokens=32)` keeps all but one."""
        return self.engine.default_sampling

    def generate(
        self,
        prompts: str | Sequence[str] | Sequence[Sequence[int]],
        sampling_params: SamplingParams | None = None,
    ) -> list[Completion]:
        """Complete texts or token ids; the answers come in the order of the prompts. Without parameters those of
        `default_sampling` count. RequestError, UnavailableError."""
        listed = [prompts] if isinstance(prompts, str) else prompts
        return self._run([self._token_ids(prompt) for prompt in listed], sampling_params)

    def chat(
        self, messages: ChatMessages | Sequence[ChatMessages], sampling_params: SamplingParams | None = None
    ) -> list[Completion]:
        """Answer one conversation, or several, as `generate` does."""
        conversations = [messages] if messages and isinstance(messages[0], Mapping) else messages
        prompts = [self.engine.tokenizer.apply_chat_template(conversation) for conversation in conversations]  # type: ignore[arg-type]
        return self._run(prompts, sampling_params)

    def submit(
        self,
        prompt_token_ids: Sequence[int],
        sampling_params: SamplingParams,
        options: RequestOptions | None = None,
    ) -> Generation:
        """One generation, to be iterated for its deltas. RequestError, QueueFullError, UnavailableError at once."""
        check_sampling(sampling_params, self.engine.config.vocab_size)
        check_token_ids(prompt_token_ids, self.engine.config.vocab_size, "prompt")
        return self.engine.submit(prompt_token_ids, sampling_params, options or RequestOptions())

    def close(self) -> None:
        self.engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _token_ids(self, prompt: str | Sequence[int]) -> Sequence[int]:
        return self.engine.tokenizer.encode(prompt, add_special_tokens=True) if isinstance(prompt, str) else prompt

    def _run(self, prompts: Sequence[Sequence[int]], given: SamplingParams | None) -> list[Completion]:
        sampling = self.default_sampling if given is None else given
        running: deque[tuple[Sequence[int], Generation]] = deque()
        completions: list[Completion] = []
        try:
            for prompt in prompts:
                while (generation := self._try_submit(prompt, sampling, can_wait=bool(running))) is None:
                    completions.append(completion_of(*running.popleft()))
                running.append((prompt, generation))
            while running:
                completions.append(completion_of(*running.popleft()))
        finally:
            for _, generation in running:
                generation.abort()
        return completions

    def _try_submit(self, prompt: Sequence[int], sampling: SamplingParams, *, can_wait: bool) -> Generation | None:
        try:
            return self.submit(prompt, sampling)
        except QueueFullError:
            if not can_wait:
                raise
            return None


def completion_of(prompt_token_ids: Sequence[int], generation: Generation) -> Completion:
    """Read a generation to its end."""
    digest = hashlib.sha256()
    token_ids: list[int] = []
    text: list[str] = []
    last = Delta((), "")
    logprobs: list[TokenLogprobs] = []
    prompt_logprobs: list[TokenLogprobs] = []
    has_logits = False
    for last in generation:
        token_ids += last.token_ids
        text.append(last.text)
        logprobs += last.logprobs
        prompt_logprobs += last.prompt_logprobs
        for logits in last.logits:
            has_logits = True
            digest.update(logits)
    assert last.finish_reason is not None
    answer = Completion(tuple(prompt_token_ids), tuple(token_ids), "".join(text), last.finish_reason, last.stop_reason)
    answer = replace(answer, logprobs=tuple(logprobs), prompt_logprobs=tuple(prompt_logprobs))
    return replace(answer, logits_sha256=digest.hexdigest()) if has_logits else answer


def _settings(config: str | Path | Settings, local: bool, overrides: Mapping[str, Any]) -> Settings:
    if local:
        overrides = {**overrides, "cluster.address": "local"}
    if isinstance(config, Settings):
        if overrides:
            raise ConfigError("overrides need a configuration file; Settings are already complete")
        return config
    return load_settings(
        find_config(str(config)), {_SHORT_NAMES.get(key, key): value for key, value in overrides.items()}
    )

"""`tinycluster generate`: one prompt, no server."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from tinycluster.cluster.config import Settings
from tinycluster.cluster.generation import Delta
from tinycluster.engine.errors import ConfigError
from tinycluster.engine.grammar import GrammarCompiler, GrammarSpec
from tinycluster.engine.request import Grammar, RequestOptions, SamplingParams
from tinycluster.engine.sampling_rules import check_sampling
from tinycluster.serve.console import own_stdout
from tinycluster.serve.llm import LLM, completion_of
from tinycluster.serve.progress import Bars


def rules_given(json_schema: Path | None, regex: str | None, grammar: Path | None) -> GrammarSpec | None:
    """What the command line's options ask of the answer. ConfigError for several of them or a file of no text."""
    specs = []
    if json_schema is not None:
        specs.append(GrammarSpec("json_schema", _text_of(json_schema, "--json-schema")))
    if regex is not None:
        specs.append(GrammarSpec("regex", regex))
    if grammar is not None:
        specs.append(GrammarSpec("grammar", _text_of(grammar, "--grammar")))
    if len(specs) > 1:
        raise ConfigError("only one of --json-schema, --regex and --grammar may be given")
    return specs[0] if specs else None


def _text_of(file: Path, option: str) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{option} {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{option} {file} is not text in UTF-8") from None


def generate(
    settings: Settings,
    prompt: str,
    given: Mapping[str, Any],
    rules: GrammarSpec | None,
    *,
    raw: bool,
    as_json: bool,
) -> None:
    """Print the answer of the settings' first model as it comes, or one JSON object at the end. `given` are fields of
    SamplingParams; the others are the model's."""
    # The command line has no stop_token_ids, the only field that needs the vocabulary: the rest is known at once.
    check_sampling(SamplingParams(**given), vocab_size=0)
    with own_stdout() as out:
        with Bars() as bars:
            llm = LLM(settings, progress=bars)
        with llm:
            prompt_token_ids = encode_prompt(llm, prompt, raw=raw)
            sampling = replace(llm.default_sampling, **given)
            options = RequestOptions(grammar=None if rules is None else compiled(llm, rules))
            if as_json:
                print(json.dumps(report(llm, prompt_token_ids, sampling, options), ensure_ascii=False), file=out)
            else:
                print_as_it_comes(llm.submit(prompt_token_ids, sampling, options), out)


def compiled(llm: LLM, rules: GrammarSpec) -> Grammar:
    """RequestError for rules that are wrong or too large."""
    tokenizer = llm.engine.tokenizer
    return GrammarCompiler(tokenizer, llm.engine.config.vocab_size, tokenizer.eos_token_ids).compile(rules)


def encode_prompt(llm: LLM, prompt: str, *, raw: bool) -> list[int]:
    if raw:
        return llm.engine.tokenizer.encode(prompt, add_special_tokens=True)
    return llm.engine.tokenizer.apply_chat_template([{"role": "user", "content": prompt}])


def print_as_it_comes(deltas: Iterable[Delta], out: TextIO) -> None:
    for delta in deltas:
        out.write(delta.text)
        out.flush()
    print(file=out)


def report(
    llm: LLM, prompt_token_ids: list[int], sampling: SamplingParams, options: RequestOptions
) -> dict[str, object]:
    """What --json prints; `seconds` leave out loading."""
    started_s = time.perf_counter()
    completion = completion_of(prompt_token_ids, llm.submit(prompt_token_ids, sampling, options))
    return {
        "text": completion.text,
        "prompt_token_ids": prompt_token_ids,
        "token_ids": list(completion.token_ids),
        "logits_sha256": completion.logits_sha256,
        "mesh": {"tensor": llm.engine.mesh.tensor, "pipeline": llm.engine.mesh.pipeline},
        "seconds": round(time.perf_counter() - started_s, 3),
        "finish_reason": completion.finish_reason,
    }

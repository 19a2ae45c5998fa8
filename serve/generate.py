"""`tinycluster generate`: one prompt, no server."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from typing import TextIO

from tinycluster.cluster.config import Settings
from tinycluster.cluster.generation import Delta
from tinycluster.engine.request import SamplingParams
from tinycluster.engine.sampling_rules import check_sampling
from tinycluster.serve.console import own_stdout
from tinycluster.serve.llm import LLM, completion_of
from tinycluster.serve.progress import Bars


def generate(settings: Settings, prompt: str, sampling: SamplingParams, *, raw: bool, as_json: bool) -> None:
    """Print the answer of the settings' first model as it comes, or one JSON object at the end."""
    # The command line has no stop_token_ids, the only field that needs the vocabulary: the rest is known at once.
    check_sampling(sampling, vocab_size=0)
    with own_stdout() as out:
        with Bars() as bars:
            llm = LLM(settings, progress=bars)
        with llm:
            prompt_token_ids = encode_prompt(llm, prompt, raw=raw)
            if as_json:
                print(json.dumps(report(llm, prompt_token_ids, sampling), ensure_ascii=False), file=out)
            else:
                print_as_it_comes(llm.submit(prompt_token_ids, sampling), out)


def encode_prompt(llm: LLM, prompt: str, *, raw: bool) -> list[int]:
    if raw:
        return llm.engine.tokenizer.encode(prompt, add_special_tokens=True)
    return llm.engine.tokenizer.apply_chat_template([{"role": "user", "content": prompt}])


def print_as_it_comes(deltas: Iterable[Delta], out: TextIO) -> None:
    for delta in deltas:
        out.write(delta.text)
        out.flush()
    print(file=out)


def report(llm: LLM, prompt_token_ids: list[int], sampling: SamplingParams) -> dict[str, object]:
    """What --json prints; `seconds` leave out loading."""
    started_s = time.perf_counter()
    completion = completion_of(prompt_token_ids, llm.submit(prompt_token_ids, sampling))
    return {
        "text": completion.text,
        "prompt_token_ids": prompt_token_ids,
        "token_ids": list(completion.token_ids),
        "logits_sha256": completion.logits_sha256,
        "mesh": {"tensor": llm.engine.mesh.tensor, "pipeline": llm.engine.mesh.pipeline},
        "seconds": round(time.perf_counter() - started_s, 3),
        "finish_reason": completion.finish_reason,
    }

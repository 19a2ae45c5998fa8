"""Writes goldens.npz: what Hugging Face transformers computes for the models of `random_model.CASES`.

    python -m tests.parity.generate_goldens          (from the repository root, with the `parity` extra)

Per case: `tokens` (SEQUENCE,) int32, a random prompt of PROMPT tokens and the greedy continuation; `logits`
(len(POSITIONS), vocab_size) float32, eager attention. Per rope case: `inv_freq`, `cos` and `sin` of some positions.
`versions` is a JSON object. Sequences are padded to one length, so that `dynamic` rope sees the length that ours is
fixed to; the padding comes after the tokens and the mask is causal.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from tests.parity.golden import PATH, POSITIONS, PROMPT, SEED, SEQUENCE, SMALLEST_GAP
from tests.parity.random_model import CASES, config_json, write_folder
from tests.parity.rope_cases import POSITIONS as ROPE_POSITIONS
from tests.parity.rope_cases import ROPE_CASES, TABLE_LENGTH
from tinycluster.engine.models.spec import ModelConfig

LEAST_DISTINCT = 8


def main() -> None:
    arrays = {"versions": np.array(json.dumps(versions()))}
    for name, config in CASES.items():
        tokens, logits = golden(load(config), config)
        arrays[f"{name}/tokens"] = tokens
        arrays[f"{name}/logits"] = logits[list(POSITIONS)]
    for name, config in ROPE_CASES.items():
        arrays.update({f"rope/{name}/{part}": array for part, array in rope_golden(config).items()})
    np.savez_compressed(PATH, **arrays)
    print(f"{PATH.name}: {PATH.stat().st_size} bytes, {versions()}")


def versions() -> dict[str, str]:
    return {"transformers": transformers.__version__, "torch": torch.__version__, "numpy": np.__version__}


def load(config: ModelConfig) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        model, report = AutoModelForCausalLM.from_pretrained(
            write_folder(Path(folder), config, SEED),
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
        )
    assert not report["missing_keys"], report
    assert not report["unexpected_keys"], report
    return model.eval()


def golden(model: Any, config: ModelConfig) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The first random prompt whose greedy continuation is neither close to a tie nor a loop."""
    for attempt in range(200):
        prompt = np.random.default_rng(attempt).integers(0, config.vocab_size, PROMPT)
        tokens, logits = greedy(model, prompt)
        second, first = np.sort(logits[PROMPT - 1 :], axis=1)[:, -2:].T
        if (first - second).min() > SMALLEST_GAP and len(set(tokens[PROMPT:].tolist())) >= LEAST_DISTINCT:
            return tokens.astype(np.int32), logits
    raise RuntimeError(f"no prompt gives {config} a clear continuation")


@torch.no_grad()
def greedy(model: Any, prompt: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    tokens = np.zeros(SEQUENCE, np.int64)
    tokens[:PROMPT] = prompt
    for length in range(PROMPT, SEQUENCE):
        logits = model(torch.from_numpy(tokens)[None]).logits[0].numpy()
        tokens[length] = logits[length - 1].argmax()
    return tokens, model(torch.from_numpy(tokens)[None]).logits[0].numpy()


@torch.no_grad()
def rope_golden(config: ModelConfig) -> dict[str, NDArray[np.float32]]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config_json(config)))
        rope = LlamaRotaryEmbedding(AutoConfig.from_pretrained(folder))
    cos, sin = rope(torch.zeros(1), torch.arange(TABLE_LENGTH)[None])
    half, rows = config.head_dim // 2, list(ROPE_POSITIONS)
    return {"inv_freq": rope.inv_freq.numpy(), "cos": cos[0, rows, :half].numpy(), "sin": sin[0, rows, :half].numpy()}


if __name__ == "__main__":
    main()

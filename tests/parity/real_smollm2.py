"""Greedy tokens of the real SmolLM2 in float32: ours against Hugging Face transformers on the dequantized weights.

    python -m tests.parity.real_smollm2 [CONFIG] [--max-tokens 64]     (from the root, with the `parity` extra)

The weights reach transformers without our loader: the `gguf` package reads and dequantizes them, and the order of the
query and key rows is undone here. transformers then sees each prompt with our continuation; where its best token is
not ours, the two are a near-tie if their logits are closer than float32 explains, which is measured as the distance
between its own float32 and float64 logits. Exit code 1 if a token differs that is no near-tie.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from numpy.typing import NDArray
from transformers import LlamaConfig, LlamaForCausalLM

from tinycluster.cluster.config import load_settings
from tinycluster.engine.progress import NoProgress
from tinycluster.engine.request import SamplingParams
from tinycluster.engine.source import default_cache_dir, resolve
from tinycluster.serve.llm import LLM

PROMPTS = (
    "The capital of France is",
    "Tell me about the sea.",
    "Once upon a time, in a village by the river,",
    "The three laws of motion are",
    "def fibonacci(n):\n",
    "To bake bread, you first need to",
    "The difference between a virus and a bacterium is",
    "In 1969, the first humans",
    "Water boils at",
    "My favourite season is autumn because",
    "A haiku about winter:\n",
    "The quick brown fox",
    "Photosynthesis is the process by which",
    "Dear Sir or Madam,\n\nI am writing to",
    "The largest planet in the solar system",
    "1, 2, 4, 8, 16,",
    "If it rains tomorrow, we will",
    "The square root of 144 is",
    "SELECT name, age FROM",
    "Les enfants jouent dans",
    "A good night's sleep helps to",
    "The recipe calls for two eggs, a cup of flour and",
    "Computers store numbers as",
    "She opened the old wooden door and saw",
)
NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
MARGIN = 4.0


@dataclass(frozen=True)
class Difference:
    """Where transformers prefers another token: by `gap`, when its float32 logits are off by `noise`."""

    position: int
    gap: float
    noise: float

    @property
    def is_near_tie(self) -> bool:
        return self.gap <= MARGIN * self.noise


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="configs/smollm2.yaml", type=Path)
    parser.add_argument("--max-tokens", type=int, default=64)
    options = parser.parse_args(arguments)
    sampling = SamplingParams(temperature=0.0, max_tokens=options.max_tokens, ignore_eos=True)
    with LLM(options.config, local=True, weights="f32") as llm:
        completions = llm.generate(PROMPTS, sampling)
    model = load_smollm2(gguf_path(options.config))
    differences = [compare(model, answer.prompt_token_ids, answer.token_ids) for answer in completions]
    for prompt, answer, found in zip(PROMPTS, completions, differences, strict=True):
        print(f"{prompt[:40]!r:44} {len(answer.token_ids) - len(found)}/{len(answer.token_ids)}", *found)
    num_wrong = sum(not difference.is_near_tie for found in differences for difference in found)
    num_tokens = sum(len(answer.token_ids) for answer in completions)
    print(
        f"{len(PROMPTS)} prompts, {num_tokens} tokens, {sum(map(len, differences))} differ, {num_wrong} of them wrong"
    )
    return 1 if num_wrong else 0


def gguf_path(config: Path) -> Path:
    settings = load_settings(config, {})
    source, cache_dir = settings.models[0], settings.cluster.cache_dir or default_cache_dir()
    return resolve(source.source, sha256=source.sha256, cache_dir=cache_dir, progress=NoProgress())


def load_smollm2(path: Path) -> LlamaForCausalLM:
    reader = GGUFReader(path)

    def field(name: str) -> Any:
        return reader.fields[f"llama.{name}"].contents()

    num_heads = {"attn_q": field("attention.head_count"), "attn_k": field("attention.head_count_kv")}
    weights = {}
    for tensor in reader.tensors:
        parts = tensor.name.split(".")
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if len(parts) == 2:
            weights[f"{TOP[parts[0]]}.weight"] = torch.from_numpy(values)
            continue
        if parts[2] in num_heads:
            values = halves_order(values, num_heads[parts[2]])
        weights[f"model.layers.{parts[1]}.{NAMES[parts[2]]}.weight"] = torch.from_numpy(values)
    is_tied = "lm_head.weight" not in weights
    config = LlamaConfig(
        vocab_size=weights["model.embed_tokens.weight"].shape[0],
        hidden_size=field("embedding_length"),
        intermediate_size=field("feed_forward_length"),
        num_hidden_layers=field("block_count"),
        num_attention_heads=num_heads["attn_q"],
        num_key_value_heads=num_heads["attn_k"],
        rms_norm_eps=field("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": field("rope.freq_base")},
        max_position_embeddings=field("context_length"),
        tie_word_embeddings=is_tied,
        attn_implementation="eager",
    )
    if is_tied:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model = LlamaForCausalLM(config)
    model.load_state_dict(weights)
    return model.eval()


def halves_order(rows: NDArray[np.float32], num_heads: int) -> NDArray[np.float32]:
    """GGUF keeps the two columns of a rotated pair side by side; transformers keeps first columns, then second ones."""
    pairs = rows.reshape(num_heads, rows.shape[0] // num_heads // 2, 2, rows.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows.shape))


@torch.no_grad()
def compare(model: LlamaForCausalLM, prompt: Sequence[int], continuation: Sequence[int]) -> list[Difference]:
    tokens = torch.tensor([[*prompt, *continuation]])
    ours = np.array(continuation)
    logits = model.float()(tokens).logits[0, len(prompt) - 1 : -1].numpy()
    best = logits.argmax(axis=1)
    places = np.flatnonzero(best != ours)
    if len(places) == 0:
        return []
    exact = model.double()(tokens).logits[0, len(prompt) - 1 : -1].numpy()
    noise = np.abs(exact - logits).max(axis=1)
    return [Difference(int(p), float(logits[p, best[p]] - logits[p, ours[p]]), float(noise[p])) for p in places]


if __name__ == "__main__":
    sys.exit(main())

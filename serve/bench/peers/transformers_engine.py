"""Hugging Face transformers on torch as one of the engines: bfloat16 for `bf16`, float32 for other weights."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
import transformers

from tinycluster.serve.bench.peers.exchange import Opening, Prompts, Ready, Timing, serve_peer


class TransformersEngine:
    def __init__(self, opening: Opening) -> None:
        torch.set_num_threads(opening.threads)
        path = Path(opening.path)
        dtype = torch.bfloat16 if opening.weights == "bf16" else torch.float32
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            str(path.parent),
            gguf_file=path.name,
            dtype=dtype,
        ).eval()
        attention = self._model.config._attn_implementation
        settings = f"torch {torch.__version__}, {opening.threads} threads, {dtype}, {attention} attention"
        self.ready = Ready(transformers.__version__, settings)

    def run(self, prompts: Prompts, output_len: int) -> Timing:
        """All prompts have one length, so nothing is padded."""
        with torch.inference_mode():
            return self._run(torch.tensor([list(prompt) for prompt in prompts]), output_len)

    def _run(self, ids: Any, output_len: int) -> Timing:
        start_s = time.perf_counter()
        out = self._model(ids, use_cache=True, logits_to_keep=1)
        ids_next = out.logits[:, -1].argmax(dim=-1, keepdim=True)
        prefilled_s = time.perf_counter()
        for _ in range(output_len - 1):
            out = self._model(ids_next, past_key_values=out.past_key_values, use_cache=True)
            ids_next = out.logits[:, -1].argmax(dim=-1, keepdim=True)
        end_s = time.perf_counter()
        return Timing(prefilled_s - start_s, end_s - prefilled_s, ids.numel(), len(ids) * (output_len - 1))


if __name__ == "__main__":
    serve_peer(TransformersEngine)

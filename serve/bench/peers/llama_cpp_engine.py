"""llama.cpp as one of the engines, through its C interface: batches of many sequences, as many threads as cores.

The key-value cache is its default (float16, one stream per sequence), flash attention is its own choice.
"""

from __future__ import annotations

import ctypes
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from tinycluster.engine.errors import ConfigError
from tinycluster.serve.bench.peers.exchange import Opening, Prompts, Ready, Timing, serve_peer

FILE_TYPES = {
    "q4": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
    "q8": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "bf16": llama_cpp.LLAMA_FTYPE_MOSTLY_BF16,
}
BATCH_TOKENS = 2048

Token = tuple[int, int, int, bool]
"""(token id, position, sequence, whether its logits are wanted)"""


class LlamaCppEngine:
    def __init__(self, opening: Opening) -> None:
        self._silence = llama_cpp.llama_log_callback(lambda level, text, state: None)
        llama_cpp.llama_log_set(self._silence, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        path = _converted(opening)
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise ConfigError(f"llama.cpp cannot load {path}")
        self._opening = opening
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._contexts: dict[int, Any] = {}
        self._batch = llama_cpp.llama_batch_init(BATCH_TOKENS, 0, 1)
        self.ready = Ready(llama_cpp.__version__, _settings(opening.threads))

    def run(self, prompts: Prompts, output_len: int) -> Timing:
        context = self._context(len(prompts))
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        lengths = np.array([len(prompt) for prompt in prompts])
        start_s = time.perf_counter()
        chosen = self._prefill(context, prompts)
        prefilled_s = time.perf_counter()
        for step in range(output_len - 1):
            rows = [(int(chosen[s]), int(lengths[s]) + step, s, True) for s in range(len(prompts))]
            chosen = self._decode(context, rows)
        end_s = time.perf_counter()
        decoded = len(prompts) * (output_len - 1)
        return Timing(prefilled_s - start_s, end_s - prefilled_s, int(lengths.sum()), decoded)

    def _prefill(self, context: Any, prompts: Prompts) -> NDArray[np.int64]:
        """The first token of each sequence; prompts go in full batches, cut anywhere."""
        rows = [
            (token, position, sequence, position == len(prompt) - 1)
            for sequence, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        chosen = [self._decode(context, rows[at : at + BATCH_TOKENS]) for at in range(0, len(rows), BATCH_TOKENS)]
        return np.concatenate(chosen)

    def _decode(self, context: Any, rows: Sequence[Token]) -> NDArray[np.int64]:
        """The most likely next token of every row whose logits are wanted."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for index, (token, position, sequence, is_wanted) in enumerate(rows):
            batch.token[index], batch.pos[index] = token, position
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
            batch.logits[index] = is_wanted
        status = llama_cpp.llama_decode(context, batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status} for {len(rows)} tokens")
        num_wanted = sum(row[3] for row in rows)
        if num_wanted == 0:
            return np.empty(0, np.int64)
        logits = llama_cpp.llama_get_logits(context)
        logits_OV = np.ctypeslib.as_array(logits, shape=(num_wanted, self._vocab_size))
        return np.asarray(logits_OV.argmax(axis=1))

    def _context(self, num_sequences: int) -> Any:
        if num_sequences not in self._contexts:
            wanted = llama_cpp.llama_context_default_params()
            wanted.n_ctx = num_sequences * self._opening.max_tokens
            wanted.n_batch, wanted.n_seq_max = BATCH_TOKENS, num_sequences
            wanted.n_threads = wanted.n_threads_batch = self._opening.threads
            self._contexts[num_sequences] = llama_cpp.llama_init_from_model(self._model, wanted)
        return self._contexts[num_sequences]


def _settings(threads: int) -> str:
    """What was chosen here, llama.cpp's defaults that matter, and what it was compiled for."""
    chosen = f"{threads} threads, batch {BATCH_TOKENS}"
    defaults = f"micro-batch {llama_cpp.llama_context_default_params().n_ubatch}, flash attention auto, KV cache f16"
    features = re.findall(r"(\w+) = 1", llama_cpp.llama_print_system_info().decode())
    return f"{chosen}, {defaults}; compiled with {' '.join(features)}"


def _converted(opening: Opening) -> Path:
    """The file itself, or what llama.cpp's own quantizer makes of it."""
    if opening.weights == "stored":
        return Path(opening.path)
    target = Path(opening.folder) / f"{opening.weights}.gguf"
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype, options.allow_requantize, options.nthread = FILE_TYPES[opening.weights], True, opening.threads
    status = llama_cpp.llama_model_quantize(opening.path.encode(), str(target).encode(), ctypes.byref(options))
    if status:
        raise ConfigError(f"llama.cpp cannot convert {opening.path} to {opening.weights}: status {status}")
    return target


if __name__ == "__main__":
    serve_peer(LlamaCppEngine)

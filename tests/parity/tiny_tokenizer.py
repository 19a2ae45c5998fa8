"""A byte-level BPE tokenizer of any size from 260 to about 960 tokens, with a chat template."""

from __future__ import annotations

import itertools
import json
import string
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
EOS_TOKEN_ID = SPECIAL_TOKENS.index("<|im_end|>")
COMMON_PAIRS = "th he in er an re on at en nd ti es or te of ed is it al ar st to nt"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer(vocab_size: int) -> Tokenizer:
    """Special tokens, the 256 bytes, then two-letter tokens until `vocab_size` is reached."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [(pair[0], pair[1]) for pair in COMMON_PAIRS.split()] + [("Ġ", letter) for letter in string.ascii_lowercase]
    pairs += itertools.product(string.ascii_lowercase, string.ascii_lowercase)
    num_merges = vocab_size - len(SPECIAL_TOKENS) - len(letters)
    merges = list(dict.fromkeys(pairs))[:num_merges]
    if num_merges < 1 or len(merges) < num_merges:
        raise ValueError(f"vocab_size must be 260 to {259 + len(dict.fromkeys(pairs))}, got {vocab_size}")
    tokens = [*SPECIAL_TOKENS, *letters, *(left + right for left, right in merges)]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """tokenizer.json, tokenizer_config.json and generation_config.json."""
    build_tokenizer(vocab_size).save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": SPECIAL_TOKENS[EOS_TOKEN_ID],
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": EOS_TOKEN_ID}))

"""Regenerate the tokenizer goldens beside this file: needs transformers, sentencepiece and gguf (extra `parity`).

    python tests/engine/goldens/make_tokenizers.py PATH/SmolLM2-135M-Instruct.Q4_1.gguf

smollm2_tokens.json  transformers' encoding of TEXTS with the real SmolLM2 vocabulary
words.json           how the pre-tokenizers of transformers cut TEXTS for Qwen 2 and Llama 3
sentencepiece.json   a tiny SentencePiece BPE model with byte fallback, and its own encoding and decoding of TEXTS
"""

from __future__ import annotations

import io
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import Regex, pre_tokenizers
from transformers import AutoTokenizer, Qwen2Tokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter

FOLDER = Path(__file__).parent
TEXTS = [
    "",
    " ",
    "  ",
    "a",
    " a",
    "Hello world",
    "Hello, world! How are you?",
    "It's we're they've I'll he'd I'm CAN'T WON'T o'clock",
    "The quick brown fox jumps over the lazy dog.",
    "1",
    "12",
    "123",
    "1234567890",
    "3.14159 and 2,718,281 or 1e-10",
    "In 2024, 50% of $1,000 was £500",
    "x=1;y=2",
    "a  b   c    d",
    "trailing spaces   ",
    "   leading spaces",
    "tab\tand\ttabs\t\t",
    "line\nbreak",
    "two\n\nbreaks",
    "windows\r\nbreak\r\n",
    "\n",
    "\n\n\n",
    " \n \n",
    "def f(x):\n    return x ** 2  # square\n",
    "for (int i = 0; i < n; ++i) { sum += a[i]; }",
    '<div class="x">&amp;</div>',
    "https://example.org/path?q=1&r=%20#top",
    "café naïve Zürich Ångström",
    "cafe\u0301 decomposed",
    "Привет, мир",
    "Γειά σου Κόσμε",
    "שלום עולם",
    "مرحبا بالعالم",
    "你好，世界。今天天气很好",
    "こんにちは世界",
    "안녕하세요 세계",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "😀 😃👍🏽 👩‍👩‍👧‍👦 🇫🇷",
    "½ ² Ⅷ ٣ १२३",
    "∑ ∫ ≤ ≠ ∞ √2",
    "zero\u200bwidth and nbsp\u00a0here",
    "\u0000\u0001\u007f",
    "ﬁ ligature, ＦＵＬＬ width",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "!!!???...---___",
    "CamelCaseAndsnake_case_and-kebab-case",
    "<|im_start|>user\nhi<|im_end|>\n",
    "before<|endoftext|>after",
    "<|im_start|",
    "antidisestablishmentarianism supercalifragilistic",
    "mixed 漢字 and 123 and émoji 🎉 done",
]
CORPUS = """SentencePiece cuts a text into pieces that a model can count. A piece is a run of characters that came
together often in the text it was trained on. The sea is wide and the sea is deep; the ship is small and the night is
long. Numbers such as 1, 23 and 456 are cut into digits. What it never saw is written byte by byte."""


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("transformers", "tokenizers", "sentencepiece")}


def smollm2_tokens(path: Path) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    # transformers passes over tokenizer.ggml.pre; this is the pre-tokenizer of the model's published tokenizer.json.
    tokenizer._tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return {"texts": TEXTS, "ids": [tokenizer(text, add_special_tokens=False).input_ids for text in TEXTS]}


def words() -> dict[str, Any]:
    letters = {chr(code): code for code in range(128)}
    qwen2 = Qwen2Tokenizer(vocab=letters, merges=[])._tokenizer.pre_tokenizer
    llama3 = TikTokenConverter.__new__(TikTokenConverter)
    TikTokenConverter.__init__(llama3, vocab_file="unused")
    cut = {
        "qwen2": qwen2,
        "llama-bpe": pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(llama3.pattern), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
    }
    return {
        "texts": TEXTS,
        "words": {
            name: [[word for word, _ in pre.pre_tokenize_str(text)] for text in TEXTS] for name, pre in cut.items()
        },
    }


def sentencepiece_model() -> dict[str, Any]:
    model = io.BytesIO()
    # The settings of Llama 2 (identity normalization, dummy prefix, byte fallback), with a tiny vocabulary.
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS.split("\n")),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        num_threads=1,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ids = range(processor.get_piece_size())
    types = [
        6 if processor.is_byte(i) else 2 if processor.is_unknown(i) else 3 if processor.is_control(i) else 1
        for i in ids
    ]
    encoded = [processor.encode(text) for text in TEXTS]
    return {
        "tokens": [processor.id_to_piece(i) for i in ids],
        "scores": [processor.get_score(i) for i in ids],
        "types": types,
        "texts": TEXTS,
        "ids": encoded,
        "decoded": [processor.decode(ids) for ids in encoded],
    }


def write(name: str, golden: dict[str, Any]) -> None:
    text = json.dumps({"versions": versions(), **golden}, ensure_ascii=True, separators=(",", ":"))
    (FOLDER / name).write_text(text + "\n", encoding="ascii")


if __name__ == "__main__":
    write("smollm2_tokens.json", smollm2_tokens(Path(sys.argv[1])))
    write("words.json", words())
    write("sentencepiece.json", sentencepiece_model())

"""A child that compiles different schemas for its parent: `python -m tests.attacks.many_schemas FOLDER 10000`.

The answer is a line of JSON: by how many bytes the process has grown since the first tenth, and what it has written.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from tests.engine.memory import resident_bytes
from tinycluster.engine.checkpoint import open_checkpoint
from tinycluster.engine.grammar import GrammarCompiler, GrammarSpec


def schema(number: int) -> str:
    """Its text is its own: nothing that is kept for one is of use to another."""
    fields: dict[str, Any] = {f"field {number}": {"type": "string"}}
    return json.dumps({"type": "object", "properties": fields, "required": list(fields)})


def main() -> None:
    tokenizer = open_checkpoint(Path(sys.argv[1])).tokenizer()
    compiler = GrammarCompiler(tokenizer, tokenizer.vocab_size, tokenizer.eos_token_ids)
    written = list[str]()
    sys.addaudithook(lambda event, arguments: _record(event, arguments, written))
    count, before = int(sys.argv[2]), 0
    for number in range(count):
        if number == count // 10:
            before = resident_bytes()
        compiler.compile(GrammarSpec("json_schema", schema(number))).start().mask()
    print(json.dumps({"growth_bytes": resident_bytes() - before, "written": written}))


def _record(event: str, arguments: tuple[Any, ...], written: list[str]) -> None:
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
        written.append(str(arguments[0]))


if __name__ == "__main__":
    main()

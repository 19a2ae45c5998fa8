"""Fuzz one target, guided by coverage: `python -m tests.fuzz.coverage_guided gguf --seconds 600`.

Needs the extra `fuzz` (atheris). Starts from valid inputs and from the seeds that earlier runs have found; ends with
status 0, or at the first finding, which is then in --found. A finding becomes a seed: tests/fuzz/seeds/TARGET/NAME.
"""

from __future__ import annotations

import argparse
import inspect
import sys
import tempfile
from pathlib import Path

import atheris

from tests.fuzz.targets import targets
from tests.fuzz.valid_inputs import valid_inputs

SEEDS = Path(__file__).parent / "seeds"


def instrument() -> int:
    """Count the branches of our own functions; how many were found. The hook of atheris on imports passes over modules
    that an editable installation's loader brings."""
    functions = [
        member
        for name, module in list(sys.modules.items())
        if name.startswith("tinycluster.")
        for owner in [module, *(each for each in vars(module).values() if inspect.isclass(each))]
        for member in vars(owner).values()
        if inspect.isfunction(member) and member.__module__ == name
    ]
    for function in functions:
        atheris.instrument_func(function)
    return len(functions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=["gguf", "folder", "request", "message", "plans", "frames"])
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--max-bytes", type=int, default=2**16)
    parser.add_argument("--found", type=Path, default=Path(tempfile.gettempdir()), help="the folder of findings")
    options = parser.parse_args()
    assert instrument() > 0
    with tempfile.TemporaryDirectory() as corpus, tempfile.TemporaryDirectory() as work:
        for number, content in enumerate(valid_inputs(options.target)):
            Path(corpus, f"valid-{number}").write_bytes(content)
        limits = [f"-max_total_time={options.seconds}", f"-max_len={options.max_bytes}", "-rss_limit_mb=2048"]
        places = [corpus, *(str(folder) for folder in [SEEDS / options.target] if folder.is_dir())]
        arguments = [*limits, "-timeout=20", f"-artifact_prefix={options.found}/{options.target}-", *places]
        atheris.Setup([sys.argv[0], *arguments], targets(Path(work))[options.target])
        atheris.Fuzz()


if __name__ == "__main__":
    main()

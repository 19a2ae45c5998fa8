"""The rules of the house over every syntax tree. Each rule is also given a file that breaks it, and must say so."""

from __future__ import annotations

import ast
import fnmatch
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = ("serve", "cluster", "engine", "parallel", "kernels")
TOP_LEVEL = {*FLOORS, "configs", "tests", "pyproject.toml", "README.md", "LICENSE", ".gitignore", ".ci", ".git"}
# Tools read these only at the root.
TOOL_FILES: set[str] = set()
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

HOMES = {
    "ray": ("cluster/", "serve/controller.py", "serve/deployment.py"),
    "fastapi": ("serve/",),
    "starlette": ("serve/",),
    "uvicorn": ("serve/",),
    "prometheus_client": ("serve/",),
    "httptools": ("serve/",),
    "regex": ("serve/content_patterns.py",),
    "httpx": ("serve/",),
    "typer": ("serve/",),
    "click": ("serve/",),
    "rich": ("serve/",),
    "sqlalchemy": ("serve/storage/",),
    "alembic": ("serve/storage/",),
    "asyncpg": ("serve/storage/",),
    "opentelemetry": ("serve/",),
    "matplotlib": ("serve/bench/plot.py", "serve/bench/growth_plot.py"),
    "llama_cpp": ("serve/bench/peers/",),
    "torch": ("serve/bench/peers/",),
    "transformers": ("serve/bench/peers/",),
    "pydantic": ("serve/", "cluster/config.py", "cluster/config_errors.py"),
    "yaml": ("serve/", "cluster/config.py"),
    "tokenizers": ("engine/",),
    "jinja2": ("engine/",),
    "llguidance": ("engine/",),
    "safetensors": ("engine/",),
    "gguf": ("engine/",),
    "huggingface_hub": ("engine/",),
    "cupy": ("kernels/cuda/", "parallel/nccl.py"),
    "numpy": tuple(f"{floor}/" for floor in FLOORS),
    "tinycluster": tuple(f"{floor}/" for floor in FLOORS),
}
UNSAFE_MODULES = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle"}
# Variables that the operating system, Python's tools and the libraries we use define.
FOREIGN_VARIABLES = (
    "HOME",
    "PATH",
    "XDG_",
    "RAY_",
    "HF_",
    "HUGGINGFACE_",
    "CUDA_",
    "PIP_",
    "PYTHON",
    "LANG",
    "TERM",
    "OPENAI_",
)
CHANGING_CALLS = {
    "pop",
    "popleft",
    "add",
    "append",
    "remove",
    "discard",
    "setdefault",
    "update",
    "insert",
    "next",
    "send",
}
VAGUE_NAMES = {"utils", "util", "helper", "helpers", "manager", "misc", "common", "handler"}
MACHINE_PATH = re.compile(r"(?<![\w.~/])/(?:work|home|root|tmp|opt|mnt|Users|usr/local|var/tmp)(?:/|\b)")
NOTE = re.compile(r"\b(?:TODO|FIXME|XXX|HACK)\b(?!\(#\d+\))")


@dataclass(frozen=True)
class Source:
    """A file of the tree by its path from the root; `tree` is empty for what is not Python."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text) if self.path.endswith(".py") else ast.Module([], [])

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """Of the whole tree, since most rules read them all."""
        return list(ast.walk(self.tree))

    @property
    def floor(self) -> str:
        return self.path.split("/")[0]


Rule = Callable[[Source], Iterator[str]]


def imported_modules(source: Source) -> Iterator[tuple[ast.stmt, str]]:
    """Every absolute import, wherever it stands; `from a import b` counts as a.b too, since b may be a module."""
    for node in source.nodes:
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            yield from ((node, f"{node.module}.{alias.name}") for alias in node.names)


def imports_run_downward(source: Source) -> Iterator[str]:
    if source.floor not in FLOORS:
        return
    allowed = FLOORS[FLOORS.index(source.floor) :]
    for node, module in imported_modules(source):
        package, _, rest = module.partition(".")
        floor = rest.split(".")[0]
        if package == "tinycluster" and floor not in (*allowed, "", "__version__"):
            yield f"line {node.lineno}: {source.floor} imports {module}; imports run {' -> '.join(FLOORS)}"
        elif package in FLOORS:
            yield f"line {node.lineno}: write tinycluster.{module}, not {module}"


def third_party_packages_stay_at_home(source: Source) -> Iterator[str]:
    if source.floor not in FLOORS:
        return
    for node, module in imported_modules(source):
        package = module.split(".")[0]
        if package in UNSAFE_MODULES:
            yield f"line {node.lineno}: {package} runs what it reads"
        elif package not in sys.stdlib_module_names and not source.path.startswith(HOMES.get(package, ())):
            homes = ", ".join(HOMES.get(package, ("no folder",)))
            yield f"line {node.lineno}: {package} belongs in {homes}"


def imports_are_absolute(source: Source) -> Iterator[str]:
    for node in source.nodes:
        if isinstance(node, ast.ImportFrom) and node.level:
            yield f"line {node.lineno}: relative import"


def folders_are_not_packages(source: Source) -> Iterator[str]:
    if source.path.endswith("__init__.py"):
        yield "a root folder that is a package would shadow other packages of its name"


def names_are_not_vague(source: Source) -> Iterator[str]:
    if vague := VAGUE_NAMES & set(re.split(r"[/_.]", source.path)):
        yield f"a file is named for its idea, not {', '.join(sorted(vague))}"


def no_path_of_one_machine(source: Source) -> Iterator[str]:
    for number, line in enumerate(source.text.splitlines(), start=1):
        if not line.startswith("#!") and (match := MACHINE_PATH.search(line)):
            yield f"line {number}: {match[0]} exists only on some machine"


def no_environment_variables_of_our_own(source: Source) -> Iterator[str]:
    if source.floor == "tests":
        return
    for node, name in _read_variables(source):
        if name is None or not name.startswith(FOREIGN_VARIABLES):
            yield f"line {node.lineno}: reads the environment variable {name}; settings stand in the configuration"
    if not source.path.endswith(".py") and re.search(r"\bgetenv\s*\(", source.text):
        yield "native code reads the environment"


def _read_variables(source: Source) -> Iterator[tuple[ast.expr, str | None]]:
    """Names looked up in os.environ or by os.getenv; None where the name is not a literal."""
    for node in source.nodes:
        key: ast.expr | None = None
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load) and _is_environ(node.value):
            key = node.slice
        elif isinstance(node, ast.Call) and node.args and _is_lookup(node.func):
            key = node.args[0]
        if key is not None:
            yield key, key.value if isinstance(key, ast.Constant) and isinstance(key.value, str) else None


def _is_lookup(function: ast.expr) -> bool:
    if not isinstance(function, ast.Attribute):
        return False
    return function.attr == "getenv" or (function.attr == "get" and _is_environ(function.value))


def _is_environ(node: ast.expr) -> bool:
    return ast.unparse(node) in ("os.environ", "environ")


def broad_handlers_log_or_raise(source: Source) -> Iterator[str]:
    for node in source.nodes:
        if isinstance(node, ast.ExceptHandler) and _is_broad(node) and not _tells(node):
            yield f"line {node.lineno}: a handler of every exception must log it, raise or pass it on"
        if isinstance(node, ast.Call) and _is_broad_suppress(node):
            yield f"line {node.lineno}: suppress() swallows every exception"


def _is_broad(handler: ast.ExceptHandler) -> bool:
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(kind is None or _is_any_exception(kind) for kind in caught)


def _is_broad_suppress(call: ast.Call) -> bool:
    return ast.unparse(call.func).split(".")[-1] == "suppress" and any(map(_is_any_exception, call.args))


def _is_any_exception(kind: ast.expr) -> bool:
    return ast.unparse(kind) in ("Exception", "BaseException")


def _tells(handler: ast.ExceptHandler) -> bool:
    for node in ast.walk(ast.Module(handler.body, [])):
        if isinstance(node, ast.Raise):
            return True
        if isinstance(node, ast.Call) and (_is_log(node.func) or _takes(node, handler.name)):
            return True
    return False


def _is_log(function: ast.expr) -> bool:
    return re.match(r"(?:\w+\.)*(?:log|logger|logging)\.", ast.unparse(function)) is not None


def _takes(call: ast.Call, name: str | None) -> bool:
    """Whether the exception itself is among the arguments."""
    return any(isinstance(argument, ast.Name) and argument.id == name for argument in call.args)


def notes_name_their_issue(source: Source) -> Iterator[str]:
    for number, line in enumerate(source.text.splitlines(), start=1):
        if match := NOTE.search(line):
            yield f"line {number}: {match[0]} without an issue number"


def no_process_globals(source: Source) -> Iterator[str]:
    for node in source.nodes:
        if isinstance(node, ast.Global):
            yield f"line {node.lineno}: global {', '.join(node.names)}"


def asserts_change_nothing(source: Source) -> Iterator[str]:
    """`python -O` leaves asserts out, and what they do."""
    if source.floor == "tests":
        return
    for node in source.nodes:
        if isinstance(node, ast.Assert):
            for part in ast.walk(node.test):
                called = part.func if isinstance(part, ast.Call) else None
                name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", None)
                if name in CHANGING_CALLS or isinstance(part, ast.NamedExpr):
                    yield f"line {node.lineno}: an assert that changes something"


def files_and_functions_are_short(source: Source) -> Iterator[str]:
    if (num_lines := len(source.text.splitlines())) > MAX_FILE_LINES:
        yield f"{num_lines} lines, more than {MAX_FILE_LINES}"
    for node in source.nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            num_lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if num_lines > MAX_FUNCTION_LINES:
                yield f"line {node.lineno}: {node.name} has {num_lines} lines, more than {MAX_FUNCTION_LINES}"


RULES: tuple[Rule, ...] = (
    imports_run_downward,
    third_party_packages_stay_at_home,
    imports_are_absolute,
    folders_are_not_packages,
    names_are_not_vague,
    no_path_of_one_machine,
    no_environment_variables_of_our_own,
    broad_handlers_log_or_raise,
    notes_name_their_issue,
    no_process_globals,
    asserts_change_nothing,
    files_and_functions_are_short,
)


SUFFIXES = {".py", ".pyi", ".cpp", ".h", ".inl", ".cu", ".yaml", ".in", ".js", ".css", ".html"}


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    """Python, native code, web pages and configuration of the five floors and the tests, but neither other projects'
    files nor this file's broken examples."""
    paths = [path for folder in (*FLOORS, "configs", "tests") for path in sorted((ROOT / folder).rglob("*"))]
    own = [path for path in paths if "vendor" not in path.parts and path != Path(__file__)]
    read = [path for path in own if path.suffix in SUFFIXES]
    return [Source(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) for path in read]


def rule_name(rule: Rule) -> str:
    return rule.__name__


@pytest.mark.parametrize("rule", RULES, ids=rule_name)
def test_every_file_keeps_the_rule(rule: Rule, sources: list[Source]) -> None:
    broken = [f"{source.path}: {problem}" for source in sources for problem in rule(source)]
    assert not broken, "\n".join(broken)


LONG_FUNCTION = "def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES

BROKEN: tuple[tuple[Rule, str, str], ...] = (
    (imports_run_downward, "kernels/a.py", "from tinycluster.engine.request import Row"),
    (imports_run_downward, "engine/a.py", "def f():\n    import tinycluster.cluster.driver"),
    (imports_run_downward, "cluster/a.py", "from tinycluster import serve"),
    (imports_run_downward, "engine/a.py", "from tinycluster import LLM"),
    (imports_run_downward, "parallel/a.py", "from kernels.program import Batch"),
    (third_party_packages_stay_at_home, "engine/a.py", "import ray"),
    (third_party_packages_stay_at_home, "serve/app.py", "from ray import serve"),
    (third_party_packages_stay_at_home, "cluster/a.py", "from rich.progress import Progress"),
    (third_party_packages_stay_at_home, "engine/a.py", "import torch"),
    (third_party_packages_stay_at_home, "cluster/a.py", "def f():\n    import pickle"),
    (imports_are_absolute, "engine/a.py", "from . import b"),
    (imports_are_absolute, "engine/a.py", "from ..kernels import c"),
    (folders_are_not_packages, "engine/models/__init__.py", ""),
    (names_are_not_vague, "engine/string_utils.py", ""),
    (names_are_not_vague, "serve/helpers/a.py", ""),
    (no_path_of_one_machine, "configs/a.yaml", "source: /home/someone/model.gguf"),
    (no_path_of_one_machine, "engine/a.py", 'PATH = "/tmp"'),
    (no_environment_variables_of_our_own, "engine/a.py", 'import os\nos.environ["TINYCLUSTER_THREADS"]'),
    (no_environment_variables_of_our_own, "engine/a.py", 'import os\nos.environ.get("THREADS", "1")'),
    (no_environment_variables_of_our_own, "engine/a.py", "import os\nos.getenv(name)"),
    (no_environment_variables_of_our_own, "kernels/cpu/a.cpp", 'auto x = std::getenv("THREADS");'),
    (broad_handlers_log_or_raise, "serve/a.py", "try:\n    f()\nexcept Exception:\n    pass"),
    (broad_handlers_log_or_raise, "serve/a.py", "try:\n    f()\nexcept:\n    g()"),
    (broad_handlers_log_or_raise, "serve/a.py", "with contextlib.suppress(Exception):\n    f()"),
    (broad_handlers_log_or_raise, "serve/a.py", "try:\n    f()\nexcept (OSError, BaseException):\n    g()"),
    (notes_name_their_issue, "serve/a.py", "x = 1  # TODO later"),
    (notes_name_their_issue, "kernels/cpu/a.cpp", "// FIXME"),
    (no_process_globals, "serve/a.py", "def f():\n    global engine\n    engine = 1"),
    (asserts_change_nothing, "engine/a.py", "assert names.pop() == 'x'"),
    (asserts_change_nothing, "engine/a.py", "assert (value := f())"),
    (files_and_functions_are_short, "serve/a.py", "x = 1\n" * (MAX_FILE_LINES + 1)),
    (files_and_functions_are_short, "serve/a.py", LONG_FUNCTION),
)


@pytest.mark.parametrize(("rule", "path", "text"), BROKEN)
def test_each_rule_sees_a_file_that_breaks_it(rule: Rule, path: str, text: str) -> None:
    assert list(rule(Source(path, text)))


KEPT: tuple[tuple[Rule, str, str], ...] = (
    (imports_run_downward, "serve/a.py", "from tinycluster.kernels import ops\nfrom tinycluster.serve import app"),
    (third_party_packages_stay_at_home, "serve/deployment.py", "from ray import serve\nimport json, numpy"),
    (no_path_of_one_machine, "parallel/a.py", 'FOLDER = "/dev/shm"\nROUTE = "/v1/home/x"\n# see ~/tmp'),
    (no_environment_variables_of_our_own, "engine/a.py", 'import os\nos.environ.get("XDG_CACHE_HOME")'),
    (broad_handlers_log_or_raise, "serve/a.py", "try:\n    f()\nexcept Exception:\n    log.exception('f failed')"),
    (broad_handlers_log_or_raise, "serve/a.py", "try:\n    f()\nexcept BaseException:\n    g()\n    raise"),
    (broad_handlers_log_or_raise, "serve/a.py", "try:\n    f()\nexcept Exception as error:\n    report(error)"),
    (broad_handlers_log_or_raise, "serve/a.py", "try:\n    f()\nexcept OSError:\n    pass"),
    (imports_run_downward, "serve/a.py", "from tinycluster import __version__"),
    (notes_name_their_issue, "serve/a.py", "x = 1  # TODO(#12): later"),
    (files_and_functions_are_short, "serve/a.py", "def f():\n" + "    x = 1\n" * (MAX_FUNCTION_LINES - 1)),
)


@pytest.mark.parametrize(("rule", "path", "text"), KEPT)
def test_rules_leave_alone_what_is_right(rule: Rule, path: str, text: str) -> None:
    assert not list(rule(Source(path, text)))


def strangers(names: set[str], ignored: list[str]) -> set[str]:
    """Entries of the root that are neither part of the house nor ignored by git."""
    return {
        name
        for name in names - TOP_LEVEL - TOOL_FILES
        if not any(fnmatch.fnmatch(name, pattern.rstrip("/")) for pattern in ignored)
    }


def test_the_root_holds_nothing_but_the_house() -> None:
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    assert strangers({path.name for path in ROOT.iterdir()}, ignored) == set()


def test_a_stranger_at_the_root_is_seen() -> None:
    assert strangers({"serve", "docs", "build", ".venv"}, ["build/", ".venv/"]) == {"docs"}


def shell_lines(markdown: str) -> list[str]:
    """The lines of the fenced blocks of shell commands."""
    blocks = re.findall(r"^```(?:sh|bash|shell|console)?\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL)
    return [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines() if line.strip()]


def serve_and_test_commands(markdown: str) -> tuple[str, str]:
    """Command 1 installs and serves, command 2 installs the test extra and runs the tests: the first line of each."""
    lines = shell_lines(markdown)
    serving = [line for line in lines if "pip install" in line and "tinycluster serve configs/smollm2.yaml" in line]
    testing = [line for line in lines if "pip install" in line and "pytest" in line]
    assert serving, "README.md has no one-line command that installs and runs `tinycluster serve configs/smollm2.yaml`"
    assert testing, "README.md has no one-line command that installs the test extra and runs pytest"
    return serving[0], testing[0]


def test_the_readme_has_its_two_commands_and_the_checks_run_the_second_as_it_stands() -> None:
    _, testing = serve_and_test_commands((ROOT / "README.md").read_text(encoding="utf-8"))
    checks = ROOT / ".ci" / "run"
    assert checks.is_file(), ".ci/run is missing"
    assert testing in checks.read_text(encoding="utf-8"), f".ci/run must run command 2 of the README: {testing}"


def test_commands_are_found_only_as_one_line_each() -> None:
    serve = "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/tinycluster serve configs/smollm2.yaml"
    test = ".venv/bin/pip install '.[test]' && .venv/bin/python -m pytest"
    assert serve_and_test_commands(f"# t\n```sh\n{serve}\n```\ntext\n```sh\n$ {test}\n```\n") == (serve, test)
    with pytest.raises(AssertionError, match="no one-line command that installs the test extra"):
        serve_and_test_commands(f"```sh\n{serve}\n```\n{test}\n")

"""Commands as a user types them: one sentence and exit code 2 for a mistake, nothing else on stdout."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tinycluster as package
from tests.serve.command_line import tinycluster
from tests.serve.server_process import own_environment
from tinycluster.engine.errors import ConfigError
from tinycluster.engine.grammar import GrammarSpec
from tinycluster.serve.generate import rules_given

COMMAND = [sys.executable, "-m", "tinycluster.serve.cli"]
ANY_SEA = ["--prompt", "Tell me about the sea.", "--max-tokens", "12", "--local"]
SEA = [*ANY_SEA, "--temperature", "0"]


def test_version_and_help_answer_without_ray_torch_or_the_server() -> None:
    modules = "import sys; from tinycluster.serve import cli; print(sorted({m.partition('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", modules], capture_output=True, text=True, check=True).stdout
    assert not [name for name in ("ray", "fastapi", "uvicorn", "numpy", "httpx") if f"'{name}'" in loaded]
    assert tinycluster("--version").stdout == f"{package.__version__}\n"
    assert "generate" in tinycluster("--help").stdout


def test_local_mode_never_imports_ray(smollm2_path: Path) -> None:
    script = f"import sys; sys.argv = ['tinycluster', 'generate', 'smollm2', *{SEA}]\n"
    script += (
        "from tinycluster.serve.cli import main\ntry: main()\nexcept SystemExit: pass\nassert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "nothing", "--prompt", "x"], "there is no configuration nothing; packaged ones are "),
        (["generate", "missing.yaml", "--prompt", "x"], "missing.yaml"),
        (["serve", "smollm2", "--set", "server.prot=1"], "server.prot is not a setting; the nearest is port"),
        (["serve", "smollm2", "--set", "nonsense"], "--set needs key=value"),
        (["serve", "smollm2", "--port", "99999"], "server.port"),
        (["serve", "smollm2", "--tensor", "0"], "tensor"),
        (["serve", "smollm2", "--weights", "q5"], "weights"),
        (["serve", "smollm2", "--local", "--host", "256.1.1.1"], "256.1.1.1"),
        (["serve", "smollm2", "--front", "haproxy"], 'server.front must be "direct" or "proxy", got \'haproxy\''),
        (["serve", "smollm2", "--set", "server.replicas=2"], "server.front must be proxy for several replicas"),
        (
            ["serve", "smollm2", "--front", "proxy", "--set", "server.replicas=2"],
            "storage.url must be postgresql://… for 2 replicas",
        ),
        (["generate", "smollm2", "--local", "--prompt", "x", "--set", "source=/no/such.gguf"], "/no/such.gguf"),
        (["generate", "smollm2", "--prompt", "x", "--grammar", "/no/such.ebnf"], "--grammar /no/such.ebnf: No such"),
        (
            ["generate", "smollm2", "--prompt", "x", "--regex", "a", "--json-schema", __file__],
            "only one of --json-schema, --regex and --grammar may be given",
        ),
        (["chat", "--url", "no url"], "--url"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(arguments: list[str], words: str) -> None:
    outcome = tinycluster(*arguments)
    assert (outcome.exit_code, outcome.stdout) == (2, "")
    assert outcome.stderr.startswith("error: ")
    assert words in outcome.stderr
    assert outcome.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--temperature", "-1"),
        ("--top-p", "0"),
        ("--max-tokens", "0"),
        ("--min-p", "2"),
        ("--presence-penalty", "3"),
        ("--frequency-penalty", "3"),
        ("--repetition-penalty", "0"),
    ],
)
def test_a_sampling_option_out_of_range_is_a_mistake(smollm2_path: Path, option: str, value: str) -> None:
    outcome = tinycluster("generate", "smollm2", "--local", "--prompt", "x", option, value)
    assert outcome.exit_code == 2
    assert option.removeprefix("--").replace("-", "_") in outcome.stderr.splitlines()[-1]


def test_generate_prints_one_object_that_no_mesh_changes(smollm2_path: Path) -> None:
    outcomes = [
        tinycluster("generate", "smollm2", *SEA, "--json", "--tensor", tensor, "--pipeline", pipeline)
        for tensor, pipeline in (("1", "1"), ("3", "2"))
    ]
    first, second = (json.loads(outcome.stdout) for outcome in outcomes)
    assert [outcome.exit_code for outcome in outcomes] == [0, 0]
    assert set(first) == {
        "text",
        "prompt_token_ids",
        "token_ids",
        "logits_sha256",
        "mesh",
        "seconds",
        "finish_reason",
    }
    assert (first["mesh"], second["mesh"]) == ({"tensor": 1, "pipeline": 1}, {"tensor": 3, "pipeline": 2})
    assert len(first["token_ids"]) == 12
    assert len(first["logits_sha256"]) == 64
    for field in ("text", "prompt_token_ids", "token_ids", "logits_sha256", "finish_reason"):
        assert first[field] == second[field]


def test_generate_prints_the_text_alone_and_raw_skips_the_template(smollm2_path: Path) -> None:
    chat, raw = (tinycluster("generate", "smollm2", *SEA, *extra) for extra in ([], ["--raw"]))
    whole = json.loads(tinycluster("generate", "smollm2", *SEA, "--json").stdout)
    assert chat.stdout == whole["text"] + "\n"
    assert raw.stdout != chat.stdout
    stopped = tinycluster("generate", "smollm2", *SEA, "--stop", whole["text"][5:8]).stdout
    assert stopped == whole["text"][:5] + "\n"


def test_generate_chooses_as_the_configuration_says_where_no_option_does(smollm2_path: Path) -> None:
    def made(*options: str) -> list[int]:
        outcome = tinycluster("generate", "smollm2", *ANY_SEA, "--seed", "1", "--json", *options)
        tokens: list[int] = json.loads(outcome.stdout)["token_ids"]
        return tokens

    penalty = ["--set", "sampling.repetition_penalty=1000"]
    assert made(*penalty) == made("--temperature", "0.2", "--top-p", "0.5", "--repetition-penalty", "1000")
    assert made(*penalty, "--repetition-penalty", "1", "--temperature", "0") == made("--temperature", "0")


def test_generate_follows_rules_and_penalties(smollm2_path: Path) -> None:
    options = ["--regex", "[a-e]{9}", "--repetition-penalty", "1000", "--json"]
    made = json.loads(tinycluster("generate", "smollm2", *SEA, *options).stdout)
    assert re.fullmatch("[a-e]{9}", made["text"])
    tokens = made["token_ids"][:-1]
    assert len(set(tokens)) == len(tokens)


def test_rules_are_read_from_files(tmp_path: Path) -> None:
    file = tmp_path / "rules"
    file.write_text("ä", encoding="utf-8")
    assert rules_given(file, None, None) == GrammarSpec("json_schema", "ä")
    assert rules_given(None, None, file) == GrammarSpec("grammar", "ä")
    assert rules_given(None, "a", None) == GrammarSpec("regex", "a")
    assert rules_given(None, None, None) is None
    file.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="is not text in UTF-8"):
        rules_given(file, None, None)


def test_config_prints_the_effective_settings() -> None:
    options = ["--tensor", "3", "--local", "--set", "limits.max_running=8", "--set", "server.port=9"]
    settings = json.loads(tinycluster("config", "smollm2", *options).stdout)
    assert settings["models"][0]["mesh"]["tensor"] == 3
    assert settings["models"][0]["limits"]["max_running"] == 8
    assert settings["cluster"]["address"] == "local"
    assert settings["server"]["port"] == 9


def test_explain_prints_the_plan_before_and_after_the_passes(smollm2_path: Path) -> None:
    before, after = tinycluster("explain", "smollm2", "--tensor", "1").stdout.split("As it is run: ")
    assert "Linear: normed -> q  207,360 bytes of weights" in before
    assert "Products × 3: normed.codes16 -> k, q, v  345,600 bytes of weights" in after
    assert "AddFixed" not in after
    rounded = tinycluster("explain", "smollm2", "--tensor", "1", "--set", "kv_cache.dtype=q8").stdout
    assert "Keys and values in bf16: " in before
    assert re.search(r"Keys and values in q8: [\d,]+ blocks of 16 tokens, [\d,]+ bytes", rounded)
    wrong = tinycluster("explain", "smollm2", "--tensor", "2", "--rank", "2")
    assert (wrong.exit_code, wrong.stderr) == (2, "error: --rank must be from 0 to 1, got 2\n")


def test_chat_without_a_server_says_so_with_exit_code_1() -> None:
    outcome = tinycluster("chat", "--url", "http://127.0.0.1:9")
    assert (outcome.exit_code, outcome.stdout) == (1, "")
    assert "no answer from http://127.0.0.1:9" in outcome.stderr
    assert "tinycluster serve" in outcome.stderr


@pytest.mark.parametrize("url", ["{}", "{}/v1", "{}/"])
def test_chat_streams_answers_to_a_pipe(fake_url: str, url: str) -> None:
    lines = "hello\n/system be kind\nand goodbye"
    ended = subprocess.run(
        [*COMMAND, "chat", "--url", url.format(fake_url), "--temperature", "0"],
        input=lines,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert (ended.stdout, ended.stderr) == ("hello\nand goodbye\n", "")


@pytest.mark.parametrize(
    ("options", "line", "exit_code", "words"),
    [
        (["--temperature", "9"], "hello", 2, "temperature must be less than or equal to 2"),
        (["--model", "other"], "hello", 2, 'The model "other" does not exist'),
        ([], "lost", 1, "rank 1 was lost"),
    ],
)
def test_chat_reports_what_the_server_says(
    fake_url: str, options: list[str], line: str, exit_code: int, words: str
) -> None:
    command = [*COMMAND, "chat", "--url", fake_url, *options]
    ended = subprocess.run(command, input=line, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == exit_code
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr


def test_whoever_closes_our_output_early_gets_no_complaint(smollm2_path: Path) -> None:
    with own_environment() as environment:
        command = " ".join([*COMMAND, "generate", "smollm2", "--local", "--prompt", "x", "--max-tokens", "30"])
        ended = subprocess.run(
            ["/bin/sh", "-c", f"{command} | true"], env=environment, capture_output=True, text=True, check=False
        )
    assert "Traceback" not in ended.stderr
    assert "BrokenPipe" not in ended.stderr

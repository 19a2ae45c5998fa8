"""Keys that commands send."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinycluster.engine.errors import ConfigError
from tinycluster.serve.options import api_key, authorization


def test_a_key_comes_from_its_file_or_from_openais_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "key"
    file.write_text("tc-abc\n")
    monkeypatch.setenv("OPENAI_API_KEY", "tc-other")
    assert (api_key(file), api_key(None)) == ("tc-abc", "tc-other")
    monkeypatch.delenv("OPENAI_API_KEY")
    assert api_key(None) is None
    assert [authorization(key) for key in ("k", None)] == [{"authorization": "Bearer k"}, {}]


@pytest.mark.parametrize("content", [b"", b" \n", b"a\nb", "schlüssel".encode(), b"\xff", b"a\x00"])
def test_a_file_without_a_key_is_a_sentence(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"--api-key-file .* (holds no key|is not text)"):
        api_key(file)
    with pytest.raises(ConfigError, match="No such file"):
        api_key(tmp_path / "missing")


def test_the_key_of_the_environment_is_looked_at_as_that_of_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", " tc-abc\n")
    assert api_key(None) == "tc-abc"
    for text in ("schlüssel", "a\nb", " "):
        monkeypatch.setenv("OPENAI_API_KEY", text)
        with pytest.raises(ConfigError, match=r"^\$OPENAI_API_KEY holds no key$"):
            api_key(None)

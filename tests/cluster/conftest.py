from __future__ import annotations

from pathlib import Path

import pytest

from tests.parity.random_model import CASES, write_folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama with 9 heads over 3 KV heads, 3 layers, and a tied head."""
    return write_folder(tmp_path_factory.mktemp("models") / "tiny", CASES["llama_nine_heads_tied"], seed=5)

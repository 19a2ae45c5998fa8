from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tinycluster.engine.progress import NoProgress
from tinycluster.engine.source import default_cache_dir, resolve

CONFIG = Path(__file__).parent.parent / "configs" / "smollm2.yaml"


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The real SmolLM2-135M-Instruct, downloaded once into the product's own cache."""
    model = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["models"][0]
    return resolve(model["source"], sha256=model["sha256"], cache_dir=default_cache_dir(), progress=NoProgress())

"""The settings that load is measured with: storage, keys and logs on, in a folder of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any


def settings_in(folder: Path, model: dict[str, Any]) -> dict[str, Any]:
    return {
        "models": [model],
        "cluster": {"address": "local"},
        "server": {"auth": "keys"},
        "storage": {"url": f"sqlite:///{folder}/load.db"},
        "telemetry": {"log_dir": str(folder / "logs")},
    }


def new_key(settings: dict[str, Any], name: str, *options: str) -> str:
    """A key made by the command line, as a user makes one."""
    command = [sys.executable, "-m", "tinycluster.serve.cli", "keys", "create", name]
    url = settings["storage"]["url"]
    made = subprocess.run([*command, "--storage-url", url, *options], check=True, capture_output=True, text=True)
    return made.stdout.split()[-1]

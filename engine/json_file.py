"""JSON files of a model folder; what is wrong with one is a CheckpointError that names it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tinycluster.engine.errors import CheckpointError


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file. CheckpointError when the file is missing, is not JSON, or holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: the file is missing") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: must hold a JSON object")
    return value


def read_json_if_present(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}

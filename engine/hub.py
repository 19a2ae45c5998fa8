"""Models from the Hugging Face hub: a snapshot of safetensors, configuration and tokenizer files, nothing else."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]
from huggingface_hub.utils.tqdm import tqdm

from tinycluster.engine.errors import CheckpointError
from tinycluster.engine.progress import Progress

ALLOWED = ("*.safetensors", "*.json", "*.jinja")
# Subfolders hold other formats, and consolidated files hold the same weights again.
IGNORED = ("*/*", "consolidated*")


def download_snapshot(repo_id: str, revision: str | None, progress: Progress) -> Path:
    """The folder in Hugging Face's cache, with the user's own token and settings.

    Without a network the cached snapshot is used if it is complete. CheckpointError otherwise.
    """
    progress.start(f"downloading {repo_id}", None)
    try:
        folder = huggingface_hub.snapshot_download(
            repo_id,
            revision=revision,
            allow_patterns=list(ALLOWED),
            ignore_patterns=list(IGNORED),
            tqdm_class=_reporting_bar(progress),
        )
    except (OSError, ValueError, HTTPError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"hf:{repo_id}: cannot be downloaded: {reason or type(error).__name__}") from error
    finally:
        progress.finish()
    return Path(folder)


def _reporting_bar(progress: Progress) -> type[tqdm]:
    """A bar that prints nothing and passes bytes on; the hub updates it from several threads."""
    lock = threading.Lock()

    class ReportingBar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            # Bytes are counted twice, when they arrive and when they are written; the second count is the complete one.
            is_transfer = str(kwargs.get("name")).endswith(".transfer")
            self._counts_bytes = kwargs.get("unit") == "B" and not is_transfer
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            if self._counts_bytes and n:
                with lock:
                    progress.advance(int(n))
            super().update(n)

    return ReportingBar

"""Programs that pip cannot bring. Where one is missing its tests are skipped, but not in continuous integration."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

PLACES = {
    "chromium": ("chromium", "chromium-browser", "google-chrome"),
    "openssl": ("openssl",),
    "postgresql": ("initdb",),
    "promtool": ("promtool",),
}
"""Package -> names of the program that shows that it is there."""

VERSIONED = Path("/usr/lib/postgresql")
"""Debian keeps the server's programs here, by version, and out of PATH."""


def needed(package: str) -> Path:
    """The package's program; of postgresql, initdb, beside which the others lie. Skips the test where it is missing."""
    found = [path for name in PLACES[package] if (path := shutil.which(name)) is not None]
    if package == "postgresql":
        found += [str(path) for path in sorted(VERSIONED.glob("*/bin/initdb"), key=_version, reverse=True)]
    if found:
        # Beside the file itself lie the others, not beside a link to it.
        return Path(found[0]).resolve()
    reason = f"{package} is not installed (apt-get install {'prometheus' if package == 'promtool' else package})"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def _version(path: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in path.parent.parent.name.split(".") if part.isdigit())

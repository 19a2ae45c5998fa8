"""Ray, without usage reports and without its uv hook. It reads both from the environment while it is imported, so
everything here imports `ray` from this file."""

from __future__ import annotations

import os

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")

import ray as ray

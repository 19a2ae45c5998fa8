"""Ray, without usage reports, without its uv hook, and with rarer reports of the metrics of Serve. It reads all that
from the environment while it is imported, so everything here imports `ray` from this file."""

from __future__ import annotations

import os

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
# In every process that has to do with Serve, ten times a second would be a sixth of what the process costs when idle.
os.environ.setdefault("RAY_SERVE_METRICS_EXPORT_INTERVAL_MS", "5000")

import ray as ray

"""Ray, without usage reports, without its uv hook, with rarer reports of the metrics of Serve, and, where we start it,
with workers of normal priority. It reads all that from the environment, most of it while it is imported, so everything
here imports `ray` from this file."""

from __future__ import annotations

import os

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
# In every process that has to do with Serve, ten times a second would be a sixth of what the process costs when idle.
os.environ.setdefault("RAY_SERVE_METRICS_EXPORT_INTERVAL_MS", "5000")
# Ray's workers would give way to every other process of the machine, by 15 steps of niceness: so would the tokens.
os.environ.setdefault("RAY_worker_niceness", "0")

import ray as ray

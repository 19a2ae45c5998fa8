"""Importing this before numpy leaves its products on one thread: those of the tests are so small that several threads
take most of their time to meet."""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"

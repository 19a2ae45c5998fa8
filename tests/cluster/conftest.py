from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parity.random_model import CASES, write_folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama with 9 heads over 3 KV heads, 3 layers, and a tied head."""
    return write_folder(tmp_path_factory.mktemp("models") / "tiny", CASES["llama_nine_heads_tied"], seed=5)


@pytest.fixture(scope="package")
def ray_address() -> Iterator[str]:
    """A Ray of two nodes with two CPUs and an address each, in folders of its own. This process is connected to it."""
    from ray.cluster_utils import Cluster

    from tinycluster.cluster.quiet_ray import ray

    node = {"num_cpus": 2, "object_store_memory": 80 * 10**6, "include_dashboard": False}
    # Not pytest's folder: the path of a Unix socket may have 107 characters.
    folder = tempfile.mkdtemp(prefix="tc-ray-")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HOME", folder)
        environment.setenv("RAY_TMPDIR", folder)
        cluster = Cluster(initialize_head=True, head_node_args={**node, "node_ip_address": "127.0.0.2"})
        try:
            cluster.add_node(**node, node_ip_address="127.0.0.3")
            ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
            yield cluster.address
        finally:
            ray.shutdown()
            cluster.shutdown()
            shutil.rmtree(folder, ignore_errors=True)

"""The dashboard in configs/: every expression is one that Prometheus understands, over metrics that the server has."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.serve.conftest import StartServer
from tests.serve.fake_engine import FakeEngine
from tests.system_packages import needed
from tinycluster.cluster.rank_report import LinkBytes, RankReport

DASHBOARD = Path(__file__).parents[2] / "configs" / "grafana.json"
METRIC = re.compile(r"\b(?:tinycluster:|process_)[a-z0-9_]+")
LABELS = re.compile(r"(?:\bby \(|\{\{)([a-z_, ]+)[)}]")


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    loaded = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


def targets(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for panel in dashboard["panels"]:
        yield from panel.get("targets", ())


def expressions(dashboard: dict[str, Any]) -> list[str]:
    """As Grafana sends them."""
    return [target["expr"].replace("$__rate_interval", "1m").replace("$model", ".*") for target in targets(dashboard)]


def rules(wanted: list[str]) -> str:
    recorded = [{"record": f"dashboard:rule_{number}", "expr": expression} for number, expression in enumerate(wanted)]
    return yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recorded}]})


def check_rules(wanted: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    path = folder / "rules.yaml"
    path.write_text(rules(wanted), encoding="utf-8")
    return subprocess.run([needed("promtool"), "check", "rules", path], capture_output=True, text=True, check=False)


def test_prometheus_understands_every_expression(dashboard: dict[str, Any], tmp_path: Path) -> None:
    wanted = expressions(dashboard)
    assert len(wanted) > 20
    done = check_rules(wanted, tmp_path)
    assert (done.returncode, f"{len(wanted)} rules found" in done.stdout) == (0, True), done.stderr


def test_a_wrong_expression_is_seen(dashboard: dict[str, Any], tmp_path: Path) -> None:
    assert check_rules([*expressions(dashboard), "sum by rate(x)"], tmp_path).returncode != 0


def test_every_metric_and_label_of_the_dashboard_is_served(
    dashboard: dict[str, Any], start_server: StartServer
) -> None:
    engine = FakeEngine()
    engine.rank_times.take(0, RankReport(1, 1, 1, 1, 1, 1, (LinkBytes(1, 1, 1),)), 0.0)
    text = httpx.get(f"{start_server(engine)}/metrics").text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    served = {sample.name: set(sample.labels) | {"instance"} for sample in samples}
    for target in targets(dashboard):
        names = METRIC.findall(target["expr"])
        assert names
        for name in names:
            assert name in served, target["expr"]
            for labels in LABELS.findall(target["expr"] + target["legendFormat"]):
                assert set(labels.replace(" ", "").split(",")) <= served[name], target
    (model,) = (one for one in dashboard["templating"]["list"] if one["name"] == "model")
    metric, label = re.fullmatch(r"label_values\((.+), (.+)\)", model["query"]["query"]).groups()  # type: ignore[union-attr]
    assert label in served[metric]


def test_panels_have_numbers_of_their_own_and_do_not_overlap(dashboard: dict[str, Any]) -> None:
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    taken = set[tuple[int, int]]()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + column, place["y"] + row) for column in range(place["w"]) for row in range(place["h"])}
        assert not cells & taken
        assert max(column for column, _ in cells) < 24
        taken |= cells
    assert {panel["type"] for panel in dashboard["panels"]} == {"row", "timeseries"}
    assert dashboard["schemaVersion"] >= 30
    assert dashboard["uid"]

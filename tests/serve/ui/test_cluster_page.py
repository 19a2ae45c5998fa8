"""The cluster page over snapshots that a test makes."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.serve.ui.browser import Sight
from tests.serve.ui.fake_backend import FakeBackend
from tests.serve.ui.snapshot import loading, model, rank, snapshot


def test_models_ranks_and_nodes_are_shown(desktop: Sight) -> None:
    page = desktop.open("/cluster")
    shown = page.get_by_role("region", name="smollm2")
    expect(shown).to_contain_text("ready")
    expect(shown).to_contain_text("4 ranks: 2 stages, each of 2 ranks that share its layers.")
    for figure in ("118", "813", "3.2", "2 waiting", "32.0 %", "the last took 2.3 s", "first token after 212 ms"):
        expect(shown.locator(".tiles")).to_contain_text(figure)
    expect(page.get_by_role("region", name="qwen3-8b")).to_contain_text("Its ranks are loading their weights.")
    expect(page.get_by_role("table", name="Nodes").get_by_role("row", name="rack-c")).to_contain_text("lost")
    expect(page.get_by_text("3 nodes · 2 models · 4 ranks · up for 1 d 2 h · version 0.1.0")).to_be_visible()
    table = page.get_by_role("region", name="What every rank holds and does")
    assert table.evaluate("table => table.scrollWidth <= table.clientWidth")


def test_the_picture_shows_the_mesh_and_the_table_says_the_same(desktop: Sight) -> None:
    page = desktop.open("/cluster")
    stages = page.locator(".stage")
    expect(stages).to_have_count(2)
    expect(stages.nth(0).locator(".rank strong")).to_have_text(["Rank 0", "Rank 1"])
    expect(stages.nth(1)).to_contain_text("layers 15–29")
    expect(stages.nth(1).locator(".rank-node")).to_have_text(["rack-a", "rack-c"])
    parts = stages.nth(0).locator(".rank").first.locator(".part")
    assert parts.evaluate_all("parts => parts.map(part => part.style.width)") == ["61%", "14%", "20%"]
    row = page.get_by_role("table", name="What every rank holds and does").get_by_role("row").nth(1)
    cells = row.get_by_role("cell").all_inner_texts()
    assert cells[:3] == ["0", "0", "rack-a"]
    assert cells[5:9] == ["0–14", "5", "12", "0"]
    assert cells[11:16] == ["61 %", "14 %", "20 %", "21 MiB", "3 MiB"]


def test_numbers_and_charts_move_and_a_new_model_appears(desktop: Sight, backend: FakeBackend) -> None:
    page = desktop.open("/cluster")
    shown = page.get_by_role("region", name="smollm2")
    expect(shown.locator(".tile").first).to_contain_text("118")
    before = shown.locator(".chart .line").first.get_attribute("d")
    backend.snapshot = snapshot(model(generation_tokens_per_s=240.0), model(name="qwen3-8b", ranks=[]))
    expect(shown.locator(".tile").first).to_contain_text("240")
    assert shown.locator(".chart .line").first.get_attribute("d") != before
    expect(page.get_by_role("region", name="qwen3-8b")).to_contain_text("ready")
    backend.snapshot = snapshot(model(state="failed", ranks=[rank(0, "rack-a", 0, 0)]))
    expect(shown).to_contain_text("failed")
    expect(page.locator(".rank")).to_have_count(1)
    expect(page.get_by_role("region", name="qwen3-8b")).to_have_count(0)


def test_a_lost_connection_is_told_and_comes_back(desktop: Sight, backend: FakeBackend) -> None:
    page = desktop.open("/cluster")
    expect(page.get_by_role("region", name="smollm2")).to_be_visible()
    backend.is_away = True
    expect(page.get_by_role("alert").filter(has_text="The connection is lost. Trying again")).to_be_visible()
    backend.snapshot = snapshot(loading("smollm2"))
    backend.is_away = False
    expect(page.get_by_text("Its ranks are loading their weights.")).to_be_visible()
    expect(page.get_by_text("The connection is lost.")).to_be_hidden()


def test_a_connection_that_says_nothing_is_lost(desktop: Sight, backend: FakeBackend) -> None:
    desktop.page.clock.install()
    page = desktop.open("/cluster")
    expect(page.get_by_role("region", name="smollm2")).to_be_visible()
    backend.is_silent = True
    page.clock.run_for(6000)
    expect(page.get_by_role("alert").filter(has_text="The connection is lost. Trying again")).to_be_visible()
    backend.is_silent = False
    expect(page.get_by_role("alert")).to_be_hidden()


def test_the_pages_lead_to_each_other(desktop: Sight) -> None:
    page = desktop.open("/")
    page.get_by_role("link", name="Cluster", exact=True).click()
    expect(page.get_by_role("heading", name="Cluster", level=1)).to_be_visible()
    page.get_by_role("link", name="Conversations").click()
    expect(page.get_by_role("textbox", name="Message")).to_be_visible()

"""The page on the application itself: what the fake backend promises, the real one keeps."""

from __future__ import annotations

import threading
from pathlib import Path

import httpx
from playwright.sync_api import expect

from tests.serve.conftest import StartServer
from tests.serve.fake_engine import FakeEngine
from tests.serve.ui.acts import (
    answers,
    choose,
    expect_answer,
    field,
    listed,
    questions,
    say,
    show_list,
    show_settings,
    text_of,
)
from tests.serve.ui.browser import OpenSight


def test_a_conversation_from_its_first_word_to_its_end(start_server: StartServer, open_sight: OpenSight) -> None:
    engine = FakeEngine(step_chars=5)
    url = start_server(engine)
    page = open_sight(url).open()
    panel = show_settings(page)
    panel.get_by_role("spinbutton", name="Temperature").fill("0.5")
    panel.get_by_role("spinbutton", name="Seed").fill("7")
    panel.get_by_role("button", name="Close the settings").click()
    with page.expect_response(lambda response: response.request.method == "PATCH"):
        say(page, "What is **this**?")
    expect_answer(page, "7:What is this?")
    expect(text_of(answers(page).last).locator("strong")).to_have_text("this")
    expect(answers(page).locator(".cost")).to_contain_text("fake")
    assert engine.submitted[0].temperature == 0.5
    expect(page).to_have_title("What is **this**? · tinycluster")
    page.get_by_role("button", name="Answer again").click()
    expect(answers(page).get_by_role("group", name="Versions")).to_have_text("2/2")
    expect_answer(page, "7:What is this?")
    questions(page).last.hover()
    page.get_by_role("button", name="Edit message").click()
    field(page).fill("Edited")
    field(page).press("Enter")
    expect_answer(page, "7:Edited")
    expect(questions(page).get_by_role("group", name="Versions")).to_have_text("2/2")
    page.reload()
    expect_answer(page, "7:Edited")
    expect(show_settings(page).get_by_role("spinbutton", name="Seed")).to_have_value("7")


def test_a_list_of_conversations_on_the_server(
    start_server: StartServer, open_sight: OpenSight, tmp_path: Path
) -> None:
    url = start_server(FakeEngine())
    page = open_sight(url).open()
    for text in ("First words", "Second words"):
        show_list(page).get_by_role("button", name="New conversation", exact=True).click()
        say(page, text)
        expect_answer(page, text)
    choose(page, "First words", "Rename")
    page.get_by_label("Title").fill("Renamed")
    page.get_by_label("Title").press("Enter")
    expect(listed(page, "Renamed")).to_be_visible()
    page.get_by_role("searchbox").fill("second")
    expect(page.locator(".session")).to_have_count(1)
    page.get_by_role("searchbox").fill("")
    answers(page).last.get_by_role("button", name="Go on from here").click()
    expect(page.locator(".session")).to_have_count(3)
    expect_answer(page, "Second words")
    with page.expect_download() as downloading:
        choose(page, "Renamed", "Export")
    file = tmp_path / "exported.json"
    downloading.value.save_as(file)
    choose(page, "Renamed", "Delete")
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.locator(".session")).to_have_count(2)
    with page.expect_file_chooser() as choosing:
        page.get_by_role("button", name="Import conversations").click()
    choosing.value.set_files(file)
    expect(page.locator(".session")).to_have_count(3)
    listed(page, "Renamed").click()
    expect_answer(page, "First words")


def test_an_answer_goes_on_through_a_reload_and_is_stopped(start_server: StartServer, open_sight: OpenSight) -> None:
    gate = threading.Semaphore(0)
    url = start_server(FakeEngine(gate=gate))
    page = open_sight(url).open()
    say(page, "abcdefghij")
    expect(answers(page).last.locator(".progress")).to_have_text("Reading · 50 %")
    gate.release(1)
    expect(text_of(answers(page).last)).to_have_text("a")
    gate.release(3)
    expect(text_of(answers(page).last)).to_have_text("abcd")
    page.reload()
    expect(text_of(answers(page).last)).to_have_text("abcd")
    gate.release(2)
    expect(text_of(answers(page).last)).to_have_text("abcdef")
    page.get_by_role("button", name="Stop the answer").click()
    gate.release(1)
    expect(answers(page).last).to_have_attribute("data-state", "complete")
    expect(answers(page).locator(".cost")).to_contain_text("stopped")
    gate.release(100)
    say(page, "xyz")
    expect_answer(page, "xyz")


def test_what_the_server_refuses_and_what_fails_on_the_way_are_sentences(
    start_server: StartServer, open_sight: OpenSight
) -> None:
    url = start_server(FakeEngine())
    page = open_sight(url).open()
    say(page, "full")
    expect(page.get_by_role("alert").filter(has_text="The queue is full.")).to_be_visible()
    say(page, "lost")
    expect(page.get_by_role("alert").filter(has_text="Rank 1 was lost.")).to_be_visible()
    expect(page.get_by_role("button", name="Answer again").first).to_be_visible()
    say(page, "Fine")
    expect_answer(page, "Fine")


def test_the_cluster_page_shows_the_application(start_server: StartServer, open_sight: OpenSight) -> None:
    url = start_server(FakeEngine())
    page = open_sight(url).open("/cluster")
    expect(page.get_by_role("region", name="fake")).to_contain_text("ready")


PROGRAM_SAID = [
    {"role": "developer", "content": "Be brief"},
    {"role": "user", "content": "What is 1 + 1?"},
    {"type": "function_call", "call_id": "c", "name": "add", "arguments": '{"a": 1, "b": 1}'},
    {"type": "function_call_output", "call_id": "c", "output": "2"},
    {"role": "assistant", "content": "It is **two**"},
]


def test_what_a_program_made_is_read_and_continued(start_server: StartServer, open_sight: OpenSight) -> None:
    url = start_server(FakeEngine())
    httpx.post(f"{url}/v1/conversations", json={"items": PROGRAM_SAID}).raise_for_status()
    page = open_sight(url).open()
    listed(page, "What is 1 + 1?").click()
    expect_answer(page, "It is two")
    speakers = page.locator("article.message h2.only-read-aloud")
    expect(speakers).to_have_text(["Instructions", "You", "Answer", "Result of a tool", "Answer"])
    expect(text_of(answers(page).first)).to_have_text('add({"a": 1, "b": 1})')
    expect(page.locator("article.tool, article.developer").get_by_role("button", name="Answer again")).to_have_count(0)
    say(page, "And 2 + 2?")
    expect_answer(page, "And 2 + 2?")

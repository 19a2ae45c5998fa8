"""The list of conversations by clicking: found, renamed, deleted, taken away and brought back."""

from __future__ import annotations

import json
from pathlib import Path

from playwright.sync_api import Route, expect

from tests.serve.ui.acts import (
    answers,
    begun,
    choose,
    expect_answer,
    field,
    held,
    listed,
    look_again,
    say,
    show_list,
    told,
)
from tests.serve.ui.browser import Sight
from tests.serve.ui.fake_backend import FakeBackend


def test_conversations_are_listed_by_day_and_opened(desktop: Sight, backend: FakeBackend) -> None:
    backend.talk("Older", "Hi", "From long ago")["updated_at"] -= 40 * 86400
    # Midnight may come in the midst of the test.
    backend.talk("Newer", "Hi", "From today")["updated_at"] += 3600
    page = desktop.open()
    side = show_list(page)
    expect(side.get_by_role("heading")).to_have_text(["Today", "Earlier"])
    listed(page, "Older").click()
    expect_answer(page, "From long ago")
    expect(page.get_by_role("button", name="Older", exact=True)).to_be_visible()


def test_conversations_are_searched_by_title_and_text(sight: Sight, backend: FakeBackend) -> None:
    backend.talk("Cooking", "How long do eggs boil?", "Seven minutes")
    backend.talk("Travelling", "Where to?", "Lisbon")
    page = sight.open()
    side = show_list(page)
    search = side.get_by_role("searchbox", name="Search the conversations")
    search.fill("lisb")
    expect(side.locator(".session a")).to_have_text(["Travelling"])
    search.fill("absent")
    expect(side.get_by_text("Nothing is found.")).to_be_visible()
    search.fill("")
    expect(side.locator(".session a")).to_have_count(2)


def test_all_pages_of_conversations_are_reached_and_stay_when_the_first_is_fetched_anew(
    desktop: Sight, backend: FakeBackend
) -> None:
    for number in range(150):
        backend.new_session(f"Session {number}")
    page = desktop.open()
    entries = show_list(page).locator(".session a")
    expect(entries).to_have_count(40)
    for shown in (80, 120, 150):
        page.get_by_role("button", name="Show more").click()
        expect(entries).to_have_count(shown)
    expect(entries.last).to_have_text("Session 0")
    entries.last.scroll_into_view_if_needed()
    before = page.locator(".side-list").evaluate("list => list.scrollTop")
    backend.add_message(next(iter(backend.sessions.values())), "user", "Moved to the front")
    backend.new_session("Newest")
    look_again(page)
    expect(entries.first).to_have_text("Newest")
    expect(entries.nth(1)).to_have_text("Session 0")
    expect(entries).to_have_count(151)
    expect(page.get_by_role("button", name="Show more")).to_be_hidden()
    assert page.locator(".side-list").evaluate("list => list.scrollTop") >= before


def test_a_conversation_is_renamed(sight: Sight, backend: FakeBackend) -> None:
    session = backend.talk("Old name", "Hi", "Hello")
    page = sight.open()
    choose(page, "Old name", "Rename")
    dialog = page.get_by_role("dialog", name="Rename the conversation")
    expect(dialog.get_by_label("Title")).to_have_value("Old name")
    dialog.get_by_label("Title").fill("New name")
    dialog.get_by_role("button", name="Rename").click()
    expect(listed(page, "New name")).to_be_visible()
    assert session["title"] == "New name"


def test_the_open_conversation_is_renamed_by_its_title(desktop: Sight, backend: FakeBackend) -> None:
    session = backend.talk("Old name", "Hi", "Hello")
    page = desktop.open(f"/#{session['id']}")
    page.get_by_role("main").get_by_role("button", name="Old name").click()
    page.get_by_label("Title").fill("New name")
    page.get_by_label("Title").press("Enter")
    expect(page.get_by_role("main").get_by_role("button", name="New name")).to_be_visible()
    expect(page).to_have_title("New name · tinycluster")


def test_a_conversation_is_deleted_after_a_question(sight: Sight, backend: FakeBackend) -> None:
    kept, gone = backend.talk("Kept", "Hi", "Hello"), backend.talk("Gone", "Hi", "Bye")
    page = sight.open(f"/#{gone['id']}")
    expect_answer(page, "Bye")
    choose(page, "Gone", "Delete")
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    assert gone["id"] in backend.sessions
    choose(page, "Gone", "Delete")
    with told(page, "The conversation is deleted."):
        page.get_by_role("dialog", name="Delete the conversation?").get_by_role("button", name="Delete").click()
    expect(answers(page)).to_have_count(0)
    assert list(backend.sessions) == [kept["id"]]
    assert "#" not in page.url


def test_a_conversation_that_is_deleted_before_it_is_open_is_left(desktop: Sight, backend: FakeBackend) -> None:
    gone = backend.talk("Gone", "Hi", "Bye")
    page = desktop.page
    waiting: list[Route] = []
    page.route("**/api/sessions/conv_*", lambda r: waiting.append(r) if r.request.method == "GET" else r.fallback())
    with page.expect_request(f"**/api/sessions/{gone['id']}"):
        page.goto(f"{desktop.url}/#{gone['id']}", wait_until="commit")
    choose(page, "Gone", "Delete")
    with told(page, "The conversation is deleted."):
        page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("heading", name="What is on your mind?")).to_be_visible()
    assert "#" not in page.url


def test_conversations_leave_as_a_file_and_come_back(desktop: Sight, backend: FakeBackend, tmp_path: Path) -> None:
    backend.talk("Taken / away: <b>", "Hi", "Hello")
    page = desktop.open()
    with page.expect_download() as downloading:
        choose(page, "Taken / away: <b>", "Export")
    assert downloading.value.suggested_filename == "Taken  away b.json"
    file = tmp_path / "one.json"
    downloading.value.save_as(file)
    assert json.loads(file.read_text())["sessions"][0]["title"] == "Taken / away: <b>"
    with page.expect_file_chooser() as choosing:
        page.get_by_role("button", name="Import conversations").click()
    with told(page, "1 conversation imported."):
        choosing.value.set_files(file)
    expect(page.locator(".session a")).to_have_count(2)
    with page.expect_download() as downloading:
        page.get_by_role("button", name="Export all conversations").click()
    assert len(json.loads(downloading.value.path().read_text())["sessions"]) == 2


def test_a_press_before_the_page_has_begun_is_not_lost(desktop: Sight) -> None:
    page = desktop.page
    with held(page, "**/ui/chat/page.js"):
        # The page's own start asks for it: presses are kept from then on. What is held may hold its load event, too.
        with page.expect_request("**/ui/chat/page.js"):
            page.goto(desktop.url, wait_until="commit")
        page.get_by_role("button", name="Settings", exact=True).click()
    expect(page.get_by_role("region", name="Settings")).to_be_visible()


def test_a_file_of_something_else_is_refused_in_a_sentence(desktop: Sight, tmp_path: Path) -> None:
    file = tmp_path / "picture.json"
    file.write_bytes(b"\x89PNG")
    page = desktop.open()
    # A browser opens its dialog within five seconds of a press: the page answers this one at once.
    begun(page)
    with page.expect_file_chooser() as choosing:
        page.get_by_role("button", name="Import conversations").click()
    choosing.value.set_files(file)
    expect(page.get_by_role("alert")).to_contain_text("picture.json is not a file of exported conversations.")


def test_a_new_conversation_is_begun_and_the_first_stays(sight: Sight, backend: FakeBackend) -> None:
    page = sight.open()
    say(page, "First")
    expect_answer(page, "You said: First")
    show_list(page)
    page.get_by_role("button", name="New conversation", exact=True).click()
    expect(page.get_by_role("heading", name="What is on your mind?")).to_be_visible()
    say(page, "Second")
    expect_answer(page, "You said: Second")
    assert len(backend.sessions) == 2
    page.go_back()
    page.go_back()
    expect_answer(page, "You said: First")


def test_what_another_device_says_is_there_when_the_reader_looks_again(desktop: Sight, backend: FakeBackend) -> None:
    session = backend.talk("Shared", "Hi", "Hello")
    page = desktop.open(f"/#{session['id']}")
    expect_answer(page, "Hello")
    backend.add_message(session, "user", "From my phone")
    backend.add_message(session, "assistant", "Seen")
    look_again(page)
    expect_answer(page, "Seen")
    expect(field(page)).to_be_visible()

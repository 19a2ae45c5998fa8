"""The focus stays where the reader is while what is around it changes."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.serve.ui.acts import answers, expect_answer, field, held, look_again, say
from tests.serve.ui.browser import Sight
from tests.serve.ui.fake_backend import FakeBackend


def test_the_focus_stays_in_the_foot_of_a_message(desktop: Sight, backend: FakeBackend) -> None:
    session = backend.talk("One", "Q", "First answer")
    question = backend.messages[session["id"]][0]["id"]
    for text in ("Second answer", "Third answer"):
        backend.add_message(session, "assistant", text, parent_id=question)
    page = desktop.open(f"/#{session['id']}")
    expect_answer(page, "Third answer")
    expect(page.locator("#model")).to_be_enabled()
    before, after = page.get_by_label("Previous version"), page.get_by_label("Next version")
    before.press("Enter")
    expect_answer(page, "Second answer")
    expect(before).to_be_focused()
    before.press("Enter")
    expect_answer(page, "First answer")
    expect(after).to_be_focused()
    copy = page.get_by_label("Copy answer")
    copy.focus()
    session["title"] = "Elsewhere"
    look_again(page)
    expect(page.get_by_role("button", name="Elsewhere", exact=True)).to_be_visible()
    expect_answer(page, "First answer")
    expect(copy).to_be_focused()
    page.get_by_label("Answer again").press("Enter")
    expect_answer(page, "You said: Q")
    expect(answers(page).last).to_be_focused()


def test_the_focus_stays_at_an_older_message_when_an_answer_begins_and_ends(
    desktop: Sight, backend: FakeBackend
) -> None:
    session = backend.talk("One", "Q", "First answer")
    page = desktop.open(f"/#{session['id']}")
    expect_answer(page, "First answer")
    backend.holds = True
    say(page, "Go")
    expect(answers(page).last).to_have_attribute("data-state", "streaming")
    branch = answers(page).first.get_by_role("button", name="Go on from here")
    branch.focus()
    expect(branch).to_have_attribute("aria-disabled", "true")
    branch.press("Enter")
    backend.last_answer.write()
    expect_answer(page, "You said: Go")
    expect(branch).not_to_have_attribute("aria-disabled", "true")
    expect(branch).to_be_focused()
    assert len(backend.sessions) == 1


def test_the_focus_stays_in_the_list_when_conversations_are_renamed_deleted_and_fetched(
    desktop: Sight, backend: FakeBackend
) -> None:
    for title in ("Three", "Two", "One"):
        backend.talk(title, "Hi", "Hello")
    page = desktop.open()
    expect(field(page)).to_be_focused()
    page.get_by_label("More about Two").press("Enter")
    page.get_by_role("menuitem", name="Rename").press("Enter")
    page.get_by_label("Title").fill("Zwei")
    page.get_by_label("Title").press("Enter")
    more = page.get_by_label("More about Zwei")
    expect(more).to_be_focused()
    more.press("Enter")
    backend.new_session("Newest")
    look_again(page)
    expect(page.locator(".session a").first).to_have_text("Newest")
    page.keyboard.press("Escape")
    expect(more).to_be_focused()
    more.press("Enter")
    page.get_by_role("menuitem", name="Delete").press("Enter")
    page.get_by_role("dialog").get_by_role("button", name="Delete").press("Enter")
    expect(page.locator(".session a")).to_have_text(["Newest", "One", "Three"])
    expect(page.get_by_role("link", name="Three", exact=True)).to_be_focused()


def test_who_searches_before_the_page_has_opened_anything_goes_on_searching(
    desktop: Sight, backend: FakeBackend
) -> None:
    page = desktop.page
    with held(page, "**/api/settings"):
        with page.expect_request("**/api/settings"):
            page.goto(desktop.url, wait_until="commit")
        search = page.get_by_role("searchbox")
        with page.expect_request("**/api/sessions?*search=lisb"):
            search.fill("lisb")
    expect(page.locator("#model")).to_be_enabled()
    expect(search).to_be_focused()

"""What the reader was writing, and who the reader is, when the page begins, is left and begins again."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from tests.serve.ui.acts import answers, expect_answer, field, listed, look_again, questions, say, show_list
from tests.serve.ui.browser import Sight
from tests.serve.ui.fake_backend import FakeBackend


def give_key(page: Page, key: str) -> None:
    page.get_by_label("Key", exact=True).fill(key)
    page.get_by_label("Key", exact=True).press("Enter")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_a_draft_is_there_after_an_edit(desktop: Sight, backend: FakeBackend) -> None:
    session = backend.talk("One", "Q1", "A1")
    page = desktop.open(f"/#{session['id']}")
    expect_answer(page, "A1")
    expect(page.get_by_role("combobox", name="Model")).to_be_enabled()
    field(page).fill("my long draft")
    questions(page).last.hover()
    edit = page.get_by_role("button", name="Edit message")
    edit.click()
    page.get_by_role("button", name="Cancel").click()
    expect(field(page)).to_have_value("my long draft")
    edit.click()
    field(page).fill("Q1 edited")
    field(page).press("Enter")
    expect_answer(page, "You said: Q1 edited")
    expect(field(page)).to_have_value("my long draft")


def test_a_draft_is_there_when_the_reader_comes_back(desktop: Sight, backend: FakeBackend) -> None:
    backend.keys = {"tc-a": "admin"}
    page = desktop.open()
    give_key(page, "tc-a")
    field(page).fill("a draft")
    page.reload()
    expect(field(page)).to_have_value("a draft")
    page.get_by_role("link", name="Cluster", exact=True).click()
    expect(page.get_by_role("heading", name="Cluster")).to_be_visible()
    page.get_by_role("link", name="Conversations").click()
    expect(field(page)).to_have_value("a draft")
    show_list(page).get_by_role("button", name="Log out").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    expect(field(page)).to_have_value("")
    give_key(page, "tc-a")
    say(page, "Hello")
    expect_answer(page, "You said: Hello")
    page.reload()
    expect_answer(page, "You said: Hello")
    expect(field(page)).to_have_value("")


def test_the_text_of_an_edit_outlives_its_conversation(desktop: Sight, backend: FakeBackend) -> None:
    session = backend.talk("One", "Q1", "A1")
    backend.talk("Other", "Hi", "Other answer")
    page = desktop.open(f"/#{session['id']}")
    expect_answer(page, "A1")
    field(page).press("ArrowUp")
    field(page).fill("a better Q1")
    listed(page, "Other").click()
    expect_answer(page, "Other answer")
    expect(page.get_by_text("You are editing a message.")).to_be_hidden()
    expect(field(page)).to_have_value("a better Q1")


def test_another_reader_finds_nothing_of_the_one_before(desktop: Sight, backend: FakeBackend) -> None:
    backend.keys = {"tc-a": "admin"}
    session = backend.talk("Of the first", "Q1", "A1")
    page = desktop.open(f"/#{session['id']}")
    give_key(page, "tc-a")
    expect_answer(page, "A1")
    field(page).fill("a draft of the first")
    backend.keys = {"tc-b": "user"}
    look_again(page)
    give_key(page, "tc-b")
    expect(answers(page)).to_have_count(0)
    expect(field(page)).to_have_value("")
    expect(show_list(page).get_by_text("anna")).to_be_visible()
    expect(page.get_by_role("link", name="Cluster", exact=True)).to_be_hidden()
    assert "#" not in page.url


def test_the_skip_link_leads_to_the_field_and_leaves_the_conversation(desktop: Sight, backend: FakeBackend) -> None:
    session = backend.talk("One", "Q1", "A1")
    page = desktop.open(f"/#{session['id']}")
    expect_answer(page, "A1")
    page.get_by_role("link", name="Write a message").focus()
    page.keyboard.press("Enter")
    expect(field(page)).to_be_focused()
    expect_answer(page, "A1")
    assert page.url.endswith(session["id"])


def test_an_address_that_means_nothing_is_an_empty_page(desktop: Sight) -> None:
    page = desktop.open("/#%E0")
    expect(page.get_by_role("heading", name="What is on your mind?")).to_be_visible()
    expect(page.get_by_role("combobox", name="Model")).to_be_enabled()


def test_a_page_that_cannot_be_loaded_says_so(desktop: Sight) -> None:
    desktop.page.route("**/ui/chat/tree.js", lambda route: route.abort())
    page = desktop.open()
    expect(page.get_by_role("status").filter(has_text="This page could not be loaded.")).to_be_visible()
    assert desktop.troubles
    desktop.troubles.clear()

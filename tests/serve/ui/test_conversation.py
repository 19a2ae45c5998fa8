"""One conversation by clicking: asking, stopping, editing, answering again, branches, copying."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from tests.serve.ui.acts import answers, expect_answer, field, questions, say, text_of, told
from tests.serve.ui.browser import OpenSight, Sight
from tests.serve.ui.fake_backend import FakeBackend


def test_a_message_is_answered_and_shows_what_it_cost(sight: Sight, backend: FakeBackend) -> None:
    page = sight.open()
    say(page, "Hello there")
    expect_answer(page, "You said: Hello there")
    expect(field(page)).to_have_value("")
    cost = answers(page).locator(".cost")
    expect(cost).to_contain_text("41.3 tokens/s")
    expect(cost).to_contain_text("first after 210 ms")
    expect(cost).to_contain_text("12 tokens")
    expect(page).to_have_title("Hello there · tinycluster")
    [session] = backend.sessions.values()
    assert page.url.endswith(f"#{session['id']}")


def test_an_answer_appears_as_it_is_written(desktop: Sight, backend: FakeBackend) -> None:
    backend.holds = True
    page = desktop.open()
    say(page, "Slowly")
    expect(answers(page).last.locator(".progress")).to_have_text("Reading · 50 %")
    backend.last_answer.write(8)
    expect(text_of(answers(page).last)).to_have_text("You said")
    backend.last_answer.write()
    expect_answer(page, "You said: Slowly")


def test_a_stopped_answer_keeps_what_it_has(sight: Sight, backend: FakeBackend) -> None:
    backend.holds = True
    page = sight.open()
    say(page, "Never ending")
    expect(answers(page)).to_have_count(1)
    expect(answers(page).last).to_have_attribute("data-state", "streaming")
    backend.last_answer.write(8)
    expect(text_of(answers(page).last)).to_have_text("You said")
    page.get_by_role("button", name="Stop the answer").click()
    expect_answer(page, "You said")
    expect(answers(page).locator(".cost")).to_contain_text("stopped")
    expect(page.get_by_role("button", name="Send")).to_be_visible()


def test_answering_again_adds_a_version_beside_the_first(sight: Sight, backend: FakeBackend) -> None:
    backend.talk("Old", "Question", "First answer")
    page = sight.open(f"/#{next(iter(backend.sessions))}")
    backend.answers["Question"] = "Second answer"
    page.get_by_role("button", name="Answer again").click()
    expect_answer(page, "Second answer")
    versions = answers(page).get_by_role("group", name="Versions")
    expect(versions).to_have_text("2/2")
    session = next(iter(backend.sessions.values()))
    first = next(m for m in backend.messages[session["id"]] if m["content"] == "First answer")
    versions.get_by_role("button", name="Previous version").click()
    expect_answer(page, "First answer")
    expect(answers(page).get_by_role("group", name="Versions")).to_have_text("1/2")
    backend.wait_for(lambda: session["head_id"] == first["id"])
    page.reload()
    expect_answer(page, "First answer")
    assert session["head_id"] == first["id"]


def test_an_edited_message_becomes_a_branch(sight: Sight, backend: FakeBackend) -> None:
    backend.talk("Old", "Zero", "Answer zero", "Original", "To the original")
    page = sight.open(f"/#{next(iter(backend.sessions))}")
    last = questions(page).last
    last.hover()
    last.get_by_role("button", name="Edit message").click()
    expect(field(page)).to_have_value("Original")
    expect(field(page)).to_be_focused()
    field(page).fill("Changed")
    page.get_by_role("button", name="Send").click()
    expect_answer(page, "You said: Changed")
    expect(questions(page)).to_have_count(2)
    switch = questions(page).last.get_by_role("group", name="Versions")
    expect(switch).to_have_text("2/2")
    switch.get_by_role("button", name="Previous version").click()
    expect(text_of(questions(page).last)).to_have_text("Original")
    expect_answer(page, "To the original")


def test_the_first_message_can_be_edited_and_an_edit_be_left(desktop: Sight, backend: FakeBackend) -> None:
    backend.talk("Old", "First", "Answer")
    page = desktop.open(f"/#{next(iter(backend.sessions))}")
    expect(answers(page)).to_have_count(1)
    expect(page.get_by_role("combobox", name="Model")).to_be_enabled()
    field(page).press("ArrowUp")
    expect(field(page)).to_have_value("First")
    field(page).press("Escape")
    expect(field(page)).to_have_value("")
    field(page).press("ArrowUp")
    field(page).fill("Another first")
    field(page).press("Enter")
    expect_answer(page, "You said: Another first")
    expect(questions(page)).to_have_count(1)
    assert backend.asked[-1]["parent_id"] is None


def test_a_conversation_goes_on_from_a_message_in_a_new_one(desktop: Sight, backend: FakeBackend) -> None:
    backend.talk("Old", "One", "Answer one", "Two", "Answer two")
    page = desktop.open(f"/#{next(iter(backend.sessions))}")
    expect(answers(page)).to_have_count(2)
    answers(page).first.get_by_role("button", name="Go on from here").click()
    expect(answers(page)).to_have_count(1)
    expect_answer(page, "Answer one")
    assert len(backend.sessions) == 2
    assert page.url.endswith(f"#{list(backend.sessions)[1]}")


def test_messages_and_code_are_copied_as_they_were_written(desktop: Sight, backend: FakeBackend) -> None:
    answer = "Here:\n\n```python\nx = 1 < 2\n```\n"
    backend.talk("Old", "Code", answer)
    page = desktop.open(f"/#{next(iter(backend.sessions))}")

    def copied() -> object:
        return page.evaluate("navigator.clipboard.readText()")

    for button, text in (("Copy code", "x = 1 < 2"), ("Copy answer", answer)):
        with told(page, "Copied."):
            page.get_by_role("button", name=button).click()
        assert copied() == text


def test_markdown_code_formulas_and_tables_are_shown(sight: Sight, backend: FakeBackend) -> None:
    answer = (
        "# Title\n\nSome **bold** and `code`, and $a^2$ for $5 or $10.\n\n$$\\sum_i x_i$$\n\n- one\n- two\n\n"
        "| a | b |\n|---|--:|\n| 1 | 2 |\n\n```python\ndef f(): return 'x'\n```\n\n[link](https://example.org/)"
    )
    backend.talk("Old", "Everything", answer)
    page = sight.open(f"/#{next(iter(backend.sessions))}")
    body = text_of(answers(page).last)
    expect(body.get_by_role("heading", name="Title")).to_be_visible()
    expect(body.locator("strong")).to_have_text("bold")
    expect(body.locator(".katex")).to_have_count(2)
    expect(body.locator(".katex-display")).to_be_visible()
    expect(body).to_contain_text("for $5 or $10.")
    expect(body.locator("ul li")).to_have_text(["one", "two"])
    expect(body.get_by_role("cell", name="2")).to_have_class("align-right")
    expect(body.locator("pre .code-keyword")).to_have_text(["def", "return"])
    expect(body.get_by_role("link", name="link")).to_have_attribute("rel", "noopener noreferrer")
    assert page.evaluate("document.documentElement.scrollWidth") <= page.evaluate("innerWidth")


def test_a_new_line_does_not_send_and_enter_does(desktop: Sight, backend: FakeBackend) -> None:
    page = desktop.open()
    expect(page.get_by_role("combobox", name="Model")).to_be_enabled()
    field(page).press_sequentially("a")
    field(page).press("Shift+Enter")
    field(page).press_sequentially("b")
    expect(field(page)).to_have_value("a\nb")
    field(page).press("Enter")
    expect(text_of(questions(page))).to_have_text(re.compile(r"a\s*b"))
    expect_answer(page, "You said: a b")
    assert backend.asked[0]["input"] == "a\nb"


def test_enter_on_a_screens_keyboard_is_a_new_line(
    open_sight: OpenSight, backend_url: str, backend: FakeBackend
) -> None:
    page = open_sight(backend_url, "phone").open()
    expect(page.get_by_role("combobox", name="Model")).to_be_enabled()
    expect(field(page)).to_have_attribute("enterkeyhint", "enter")
    field(page).press_sequentially("a")
    field(page).press("Enter")
    field(page).press_sequentially("b")
    page.get_by_role("button", name="Send").click()
    expect_answer(page, "You said: a b")
    assert backend.asked[0]["input"] == "a\nb"


def test_the_list_follows_the_end_until_the_reader_goes_up(desktop: Sight, backend: FakeBackend) -> None:
    backend.holds = True
    text = backend.answers["Long"] = "\n\n".join(f"Paragraph {number}" for number in range(80))
    page = desktop.open()
    say(page, "Long")
    expect(answers(page).last).to_have_attribute("data-state", "streaming")
    # Nothing is to come any more when the reader goes up: the last that is written is shown.
    backend.last_answer.write(text.index("\n\nParagraph 61"))
    expect(page.get_by_text("Paragraph 60", exact=True)).to_be_in_viewport()
    page.locator("#messages").hover()
    page.mouse.wheel(0, -3000)
    expect(page.get_by_text("Paragraph 0", exact=True)).to_be_in_viewport()
    backend.last_answer.write()
    expect(answers(page).last).to_have_attribute("data-state", "complete")
    expect(page.get_by_text("Paragraph 0", exact=True)).to_be_in_viewport()
    page.get_by_role("button", name="To the newest message").click()
    expect(page.get_by_text("Paragraph 79", exact=True)).to_be_in_viewport()

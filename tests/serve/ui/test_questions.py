"""A question keeps its place and its text, whatever happens to it before its answer begins and while it is read."""

from __future__ import annotations

from copy import deepcopy

from playwright.sync_api import Page, Route, expect

from tests.serve.ui.acts import answers, expect_answer, field, leave_running, listed, questions, say, text_of
from tests.serve.ui.browser import Sight
from tests.serve.ui.fake_backend import FakeBackend, Json, Refusal

FULL = Refusal(429, "the queue is full", "queue_full")


def open_talk(sight: Sight, backend: FakeBackend, *texts: str) -> tuple[Page, Json]:
    """A conversation with these questions and answers, and a model to ask."""
    session = backend.talk("One", *texts)
    page = sight.open(f"/#{session['id']}")
    expect_answer(page, texts[-1])
    expect(page.get_by_role("combobox", name="Model")).to_be_enabled()
    return page, session


def refuse(route: Route) -> None:
    route.fulfill(status=500, json={"error": {"message": "boom"}})


def test_a_refused_further_answer_leaves_the_first(desktop: Sight, backend: FakeBackend) -> None:
    page, session = open_talk(desktop, backend, "Q1", "A1", "Q2", "A2")
    backend.refusals = [FULL]
    answers(page).last.get_by_role("button", name="Answer again").click()
    expect(page.get_by_text("The queue is full.")).to_be_visible()
    expect_answer(page, "A2")
    say(page, "Q3")
    expect_answer(page, "You said: Q3")
    expect(answers(page)).to_have_count(3)
    expect(page.get_by_text("The queue is full.")).to_be_hidden()
    assert backend.asked[-1]["parent_id"] == backend.messages[session["id"]][3]["id"]


def test_a_refused_further_answer_is_tried_again(desktop: Sight, backend: FakeBackend) -> None:
    page, _ = open_talk(desktop, backend, "Q1", "A1")
    backend.refusals = [FULL]
    page.get_by_role("button", name="Answer again").click()
    page.get_by_role("button", name="Try again").click()
    expect_answer(page, "You said: Q1")
    expect(answers(page).get_by_role("group", name="Versions")).to_have_text("2/2")
    expect(page.get_by_text("The queue is full.")).to_be_hidden()


def test_a_refused_edit_is_left_for_the_version_before(desktop: Sight, backend: FakeBackend) -> None:
    page, session = open_talk(desktop, backend, "Q1", "A1")
    backend.refusals = [FULL]
    field(page).press("ArrowUp")
    field(page).fill("Q1 edited")
    field(page).press("Enter")
    expect(page.get_by_text("The queue is full.")).to_be_visible()
    questions(page).last.get_by_role("button", name="Previous version").click()
    expect_answer(page, "A1")
    expect(field(page)).to_have_value("Q1 edited")
    say(page, "Q2")
    expect_answer(page, "You said: Q2")
    expect(questions(page)).to_have_count(2)
    assert backend.asked[-1]["parent_id"] == backend.messages[session["id"]][1]["id"]


def test_a_refused_edit_can_be_edited(desktop: Sight, backend: FakeBackend) -> None:
    page, _ = open_talk(desktop, backend, "Q1", "A1")
    backend.refusals = [FULL]
    for text in ("Q1 edited", "Q1 edited again"):
        field(page).press("ArrowUp")
        field(page).fill(text)
        field(page).press("Enter")
        expect(text_of(questions(page).last)).to_have_text(text)
        expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect_answer(page, "You said: Q1 edited again")
    expect(questions(page).get_by_role("group", name="Versions")).to_have_text("2/2")
    assert backend.asked[-1]["parent_id"] is None


def test_an_answer_whose_connection_is_lost_for_good_stays_and_is_read_on(desktop: Sight, backend: FakeBackend) -> None:
    page, _ = open_talk(desktop, backend, "Q1", "A1")
    backend.holds = True
    say(page, "Go")
    expect(answers(page).last).to_have_attribute("data-state", "streaming")
    backend.last_answer.write(8)
    expect(text_of(answers(page).last)).to_have_text("You said")
    page.route("**/events", refuse)
    backend.break_after = 0
    expect(page.get_by_text("Boom.")).to_be_visible()
    expect(text_of(answers(page).last)).to_have_text("You said")
    page.unroute("**/events")
    backend.last_answer.write()
    page.get_by_role("button", name="Try again").click()
    expect_answer(page, "You said: Go")
    assert len(backend.asked) == 1
    say(page, "Next")
    expect(answers(page)).to_have_count(3)
    expect(answers(page).last).to_have_attribute("data-state", "streaming")
    assert backend.asked[-1]["parent_id"] == next(iter(backend.running))


def test_an_answer_that_cannot_be_followed_leaves_the_composer_free(desktop: Sight, backend: FakeBackend) -> None:
    going = leave_running(desktop, backend)
    page = desktop.page
    page.route("**/events", refuse)
    page.goto(going)
    expect(page.get_by_text("Boom.")).to_be_visible()
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    page.unroute("**/events")
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("button", name="Stop the answer")).to_be_visible()
    backend.last_answer.write()
    expect_answer(page, "You said: Go")
    assert len(backend.asked) == 1


def test_nothing_is_sent_into_a_conversation_that_is_not_there_yet(desktop: Sight, backend: FakeBackend) -> None:
    session = backend.talk("One", "Hi", "Hello")
    page = desktop.open()
    expect(page.get_by_role("combobox", name="Model")).to_be_enabled()
    held: list[Route] = []
    page.route("**/api/sessions/conv_*", lambda route: held.append(route))
    with page.expect_request("**/api/sessions/conv_*"):
        listed(page, "One").click()
    field(page).fill("precious")
    expect(page.get_by_role("button", name="Send")).to_be_disabled()
    field(page).press("Enter")
    expect(field(page)).to_have_value("precious")
    held[0].fallback()
    expect_answer(page, "Hello")
    field(page).press("Enter")
    expect_answer(page, "You said: precious")
    assert backend.asked[0]["session_id"] == session["id"]


def test_a_message_that_is_left_at_once_is_said_nevertheless(desktop: Sight, backend: FakeBackend) -> None:
    backend.talk("Other", "Hi", "Other answer")
    backend.is_slow, backend.settings = True, {"parameters": {"seed": 5}}
    page = desktop.open()
    say(page, "Left at once")
    expect(answers(page)).to_have_count(1)
    listed(page, "Other").click()
    expect_answer(page, "Other answer")
    backend.is_slow = False
    listed(page, "Left at once").click()
    expect_answer(page, "You said: Left at once")


def test_a_message_that_is_left_and_refused_says_so_and_is_sent_again(desktop: Sight, backend: FakeBackend) -> None:
    page, session = open_talk(desktop, backend, "Q1", "A1")
    backend.is_slow, backend.refusals = True, [FULL]
    say(page, "Left at once")
    expect(answers(page)).to_have_count(2)
    page.get_by_role("button", name="New conversation", exact=True).click()
    expect(page.get_by_role("heading", name="What is on your mind?")).to_be_visible()
    backend.is_slow = False
    trouble = page.get_by_role("alert").filter(has_text="“Left at once” was not asked for. The queue is full.")
    trouble.get_by_role("button", name="Try again").click()
    expect(trouble).to_have_count(0)
    listed(page, "One").click()
    expect_answer(page, "You said: Left at once")
    assert [message["content"] for message in backend.messages[session["id"]]][2:] == [
        "Left at once",
        "You said: Left at once",
    ]


def test_an_answer_that_begins_while_its_conversation_is_opened_is_shown(desktop: Sight, backend: FakeBackend) -> None:
    page, session = open_talk(desktop, backend, "Q1", "A1")
    before = deepcopy(backend.shown(session["id"]))
    backend.is_slow = True
    say(page, "Left at once")
    expect(answers(page)).to_have_count(2)
    page.get_by_role("button", name="New conversation", exact=True).click()
    expect(page.get_by_role("heading", name="What is on your mind?")).to_be_visible()
    held: list[Route] = []
    page.route("**/api/sessions/conv_*", lambda route: held.append(route), times=1)
    with page.expect_request("**/api/sessions/conv_*"):
        listed(page, "One").click()
    with page.expect_request("**/api/sessions?*"):
        backend.is_slow = False
    held[0].fulfill(json=before)
    expect_answer(page, "You said: Left at once")


def test_a_further_answer_that_is_left_before_it_begins_leaves_no_ghost(desktop: Sight, backend: FakeBackend) -> None:
    page, session = open_talk(desktop, backend, "Q1", "A1", "Q2", "A2")
    backend.add_message(session, "assistant", "Another A1", parent_id=backend.messages[session["id"]][0]["id"])
    page.reload()
    expect_answer(page, "Another A1")
    expect(page.get_by_role("combobox", name="Model")).to_be_enabled()
    backend.is_slow = True
    page.get_by_role("button", name="Answer again").click()
    expect(page.get_by_role("button", name="Stop the answer")).to_be_visible()
    page.get_by_role("button", name="Previous version").click()
    expect_answer(page, "Another A1")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    versions = answers(page).get_by_role("group", name="Versions")
    expect(versions).to_have_text("2/2")
    backend.is_slow = False
    expect(versions).to_have_text("2/3")
    page.get_by_role("button", name="Next version").click()
    expect_answer(page, "You said: Q1")


def test_a_message_that_cannot_be_sent_is_stopped(desktop: Sight, backend: FakeBackend) -> None:
    page, _ = open_talk(desktop, backend, "Q1", "A1")
    page.route("**/api/chat", lambda route: route.abort())
    say(page, "Go")
    expect(page.get_by_text("The connection is lost. Trying again …")).to_be_visible()
    page.get_by_role("button", name="Stop the answer").click()
    expect(page.get_by_text("The connection is lost.")).to_have_count(0)
    expect(text_of(questions(page).last)).to_have_text("Go")
    page.unroute("**/api/chat")
    page.get_by_role("button", name="Try again").click()
    expect_answer(page, "You said: Go")


def test_a_stop_before_the_answer_begins_stops_it_when_it_has(desktop: Sight, backend: FakeBackend) -> None:
    backend.holds = backend.is_slow = True
    page = desktop.open()
    say(page, "Go")
    page.get_by_role("button", name="Stop the answer").click()
    backend.is_slow = False
    expect(answers(page).locator(".cost")).to_contain_text("stopped")

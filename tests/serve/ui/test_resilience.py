"""What the reader sees when the network, the page or the server goes away, and when the server refuses."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.serve.ui.acts import answers, expect_answer, field, leave_running, questions, say, text_of
from tests.serve.ui.browser import Sight
from tests.serve.ui.fake_backend import FakeBackend, Refusal

LONG = "The quick brown fox jumps over the lazy dog — 🦊 and 🐶 — again and again, to the end."


def test_a_running_answer_survives_a_reload(desktop: Sight, backend: FakeBackend) -> None:
    backend.holds, backend.answers["Go"] = True, LONG
    page = desktop.open()
    say(page, "Go")
    expect(answers(page).last).to_have_attribute("data-state", "streaming")
    backend.last_answer.write(60)
    expect(text_of(answers(page).last)).to_have_text(LONG[:60])
    page.reload()
    expect(text_of(answers(page).last)).to_have_text(LONG[:60])
    expect(page.get_by_role("button", name="Stop the answer")).to_be_visible()
    backend.last_answer.write()
    expect_answer(page, LONG)
    # Characters are counted as the server counts them, not as JavaScript does, where a fox is two.
    assert backend.resumed_from == [f"{backend.last_answer.message['id']}/60"]


def test_a_broken_stream_goes_on_where_it_was(desktop: Sight, backend: FakeBackend) -> None:
    backend.holds, backend.answers["Go"] = True, LONG
    page = desktop.open()
    say(page, "Go")
    expect(answers(page).last).to_have_attribute("data-state", "streaming")
    # A browser forgets what has come and is not read yet when a connection breaks: this is read before.
    backend.last_answer.write(21)
    expect(text_of(answers(page).last)).to_have_text(LONG[:21])
    backend.break_after = 0
    backend.wait_for(lambda: backend.resumed_from != [])
    backend.last_answer.write()
    expect_answer(page, LONG)
    assert backend.resumed_from == [f"{backend.last_answer.message['id']}/21"]
    assert len(backend.asked) == 1


def test_a_network_that_is_away_is_waited_for(desktop: Sight, backend: FakeBackend) -> None:
    backend.holds, backend.answers["Go"] = True, LONG
    page = desktop.open()
    say(page, "Go")
    expect(answers(page).last).to_have_attribute("data-state", "streaming")
    backend.last_answer.write(10)
    expect(text_of(answers(page).last)).to_have_text(LONG[:10].strip())
    backend.is_away = True
    expect(page.get_by_text("The connection is lost. Trying again …")).to_be_visible()
    backend.is_away = False
    backend.last_answer.write()
    expect_answer(page, LONG)
    expect(page.get_by_text("The connection is lost.")).to_have_count(0)


def test_a_message_whose_connection_breaks_before_its_answer_is_not_said_twice(
    desktop: Sight, backend: FakeBackend
) -> None:
    page = desktop.open()
    expect(page.get_by_role("combobox", name="Model")).to_be_enabled()
    attempts: list[str] = []

    def break_first(route: object) -> None:
        attempts.append("chat")
        if len(attempts) == 1:
            route.fetch()  # type: ignore[attr-defined]
            route.abort("connectionreset")  # type: ignore[attr-defined]
        else:
            route.fallback()  # type: ignore[attr-defined]

    page.route("**/api/chat", break_first)
    say(page, "Once")
    expect_answer(page, "You said: Once")
    assert len(attempts) == 2
    [messages] = backend.messages.values()
    assert [message["content"] for message in messages] == ["Once", "You said: Once"]


def test_a_refusal_is_a_sentence_with_a_retry(desktop: Sight, backend: FakeBackend) -> None:
    backend.refusals = [Refusal(429, "the queue is full", "queue_full")]
    page = desktop.open()
    say(page, "Hello")
    trouble = page.get_by_role("alert").filter(has_text="The queue is full.")
    expect(trouble).to_be_visible()
    expect(text_of(questions(page).last)).to_have_text("Hello")
    expect(answers(page)).to_have_count(0)
    trouble.get_by_role("button", name="Try again").click()
    expect_answer(page, "You said: Hello")
    expect(questions(page)).to_have_count(1)
    assert backend.asked[0]["message_id"] == backend.asked[1]["message_id"]


def test_a_refused_message_can_be_written_anew(desktop: Sight, backend: FakeBackend) -> None:
    backend.refusals = [Refusal(400, "the prompt has 9000 tokens, the context 4096", "context_length_exceeded")]
    page = desktop.open()
    say(page, "Too long")
    expect(page.get_by_text("The prompt has 9000 tokens, the context 4096.")).to_be_visible()
    say(page, "Short")
    expect_answer(page, "You said: Short")
    expect(questions(page)).to_have_count(1)
    expect(page.get_by_role("group", name="Versions")).to_have_count(0)


def test_an_interrupted_answer_says_so_and_is_asked_for_again(desktop: Sight, backend: FakeBackend) -> None:
    backend.holds, backend.answers["Go"] = True, LONG
    page = desktop.open()
    say(page, "Go")
    expect(answers(page).last).to_have_attribute("data-state", "streaming")
    backend.last_answer.write(9)
    backend.last_answer.interrupt()
    expect(text_of(answers(page).last)).to_have_text("The quick")
    expect(page.get_by_text("This answer was interrupted.")).to_be_visible()
    backend.holds = False
    page.get_by_role("alert").get_by_role("button", name="Answer again").click()
    expect_answer(page, LONG)
    expect(answers(page).get_by_role("group", name="Versions")).to_have_text("2/2")


def test_a_conversation_that_is_gone_is_a_sentence_and_an_empty_page(desktop: Sight) -> None:
    page = desktop.open("/#conv_absent")
    expect(page.get_by_role("alert").filter(has_text="There is no such session.")).to_be_visible()
    expect(page.get_by_role("heading", name="What is on your mind?")).to_be_visible()


def test_another_conversation_can_be_read_while_an_answer_is_written(desktop: Sight, backend: FakeBackend) -> None:
    backend.answers["Go"] = LONG
    going = leave_running(desktop, backend)
    page = desktop.page
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    backend.last_answer.write()
    page.goto(going)
    expect_answer(page, LONG)
    expect(field(page)).to_be_visible()

"""What the reader chooses is kept, whoever else writes and whenever the reader leaves."""

from __future__ import annotations

from playwright.sync_api import Page, Request, Route, expect

from tests.serve.ui.acts import expect_answer, field, listed, look_again, say, show_settings
from tests.serve.ui.browser import Sight
from tests.serve.ui.fake_backend import FakeBackend


def seed(page: Page, value: str) -> None:
    show_settings(page).get_by_role("spinbutton", name="Seed").fill(value)


def model_ready(page: Page) -> None:
    expect(page.get_by_role("combobox", name="Model")).to_be_enabled()


def is_put(request: Request) -> bool:
    return request.method == "PUT"


def test_a_choice_leaves_what_could_not_be_read(desktop: Sight, backend: FakeBackend) -> None:
    backend.settings = {"parameters": {"system": "precious"}, "model": "smollm2"}
    desktop.page.route("**/api/settings", lambda route: route.abort(), times=1)
    page = desktop.open()
    model_ready(page)
    trouble = page.get_by_role("alert").filter(has_text="Your settings cannot be read.")
    expect(trouble).to_be_visible()
    page.get_by_role("combobox", name="Model").select_option("qwen3-8b")
    seed(page, "3")
    # Both are written together, or one after the other where the second comes late.
    backend.wait_for(lambda: "seed" in backend.settings["parameters"])
    assert backend.settings == {"parameters": {"system": "precious", "seed": 3}, "model": "qwen3-8b"}
    trouble.get_by_role("button", name="Try again").click()
    expect(show_settings(page).get_by_role("textbox", name="System prompt")).to_have_value("precious")


def test_two_pages_keep_their_choices_beside_each_other(desktop: Sight, backend: FakeBackend) -> None:
    page = desktop.open()
    model_ready(page)
    other = page.context.new_page()
    other.goto(desktop.url)
    model_ready(other)
    with page.expect_request_finished(is_put):
        show_settings(page).get_by_role("textbox", name="System prompt").fill("Be brief.")
    with other.expect_request_finished(is_put):
        seed(other, "3")
    assert backend.settings["parameters"] == {"system": "Be brief.", "seed": 3}
    with page.expect_request_finished(is_put):
        show_settings(page).get_by_role("textbox", name="System prompt").fill("")
    assert backend.settings["parameters"] == {"seed": 3}


def test_a_setting_and_a_model_that_are_chosen_at_once_are_both_kept(desktop: Sight, backend: FakeBackend) -> None:
    session = backend.talk("One", "Hi", "Hello")
    page = desktop.open(f"/#{session['id']}")
    model_ready(page)
    seed(page, "3")
    page.get_by_role("combobox", name="Model").select_option("qwen3-8b")
    expect(page.get_by_role("combobox", name="Model")).to_have_value("qwen3-8b")
    backend.wait_for(lambda: session["model"] == backend.settings.get("model") == "qwen3-8b")
    page.reload()
    expect(show_settings(page).get_by_role("spinbutton", name="Seed")).to_have_value("3")
    assert (session["settings"], session["model"]) == ({"seed": 3}, "qwen3-8b")
    assert backend.settings["model"] == "qwen3-8b"


def test_a_setting_is_kept_by_who_sends_or_leaves_at_once(desktop: Sight, backend: FakeBackend) -> None:
    page = desktop.open()
    model_ready(page)
    field(page).fill("Hello")
    show_settings(page).get_by_role("textbox", name="System prompt").fill("Be brief.")
    page.get_by_role("button", name="Send").click()
    expect_answer(page, "You said: Hello")
    backend.wait_for(lambda: backend.settings != {})
    assert backend.settings["parameters"] == {"system": "Be brief."}
    [session] = backend.sessions.values()
    backend.wait_for(lambda: session["settings"] != {})
    talk = page.url
    # What a page sends while it is left may come after what the next one asks for: that is opened when it has come.
    seed(page, "5")
    page.goto(f"{desktop.url}/cluster")
    backend.wait_for(lambda: "seed" in session["settings"])
    page.goto(talk)
    expect_answer(page, "You said: Hello")
    expect(show_settings(page).get_by_role("spinbutton", name="Seed")).to_have_value("5")
    page.goto(f"{desktop.url}/cluster")
    page.goto(desktop.url)
    model_ready(page)
    seed(page, "6")
    page.goto(f"{desktop.url}/cluster")
    backend.wait_for(lambda: "seed" in backend.settings["parameters"])
    page.goto(desktop.url)
    expect(show_settings(page).get_by_role("spinbutton", name="Seed")).to_have_value("6")
    assert backend.settings["parameters"] == {"system": "Be brief.", "seed": 6}


def test_a_slow_write_holds_no_conversation_up(desktop: Sight, backend: FakeBackend) -> None:
    one, two, three = (backend.talk(name, "Hi", f"Answer {name}") for name in ("One", "Two", "Three"))
    page = desktop.open(f"/#{one['id']}")
    expect_answer(page, "Answer One")
    held: list[Route] = []

    def hold(route: Route) -> None:
        if route.request.method == "PATCH":
            held.append(route)
        else:
            route.fallback()

    page.route("**/api/sessions/conv_*", hold)
    with page.expect_request(lambda request: request.method == "PATCH"):
        seed(page, "3")
        listed(page, "Two").click()
    expect_answer(page, "Answer Two")
    listed(page, "Three").click()
    expect_answer(page, "Answer Three")
    with page.expect_request_finished(lambda request: request.method == "PATCH"):
        held[0].fallback()
    expect_answer(page, "Answer Three")
    assert [session["settings"] for session in (one, two, three)] == [{"seed": 3}, {}, {}]


def test_the_model_of_one_conversation_is_not_that_of_the_next(desktop: Sight, backend: FakeBackend) -> None:
    backend.talk("One", "Hi", "Hello")["model"] = "qwen3-8b"
    page = desktop.open()
    model = page.get_by_role("combobox", name="Model")
    expect(model).to_have_value("smollm2")
    listed(page, "One").click()
    expect(model).to_have_value("qwen3-8b")
    page.get_by_role("button", name="New conversation", exact=True).click()
    expect(model).to_have_value("smollm2")


def test_a_model_that_comes_later_can_be_chosen(desktop: Sight, backend: FakeBackend) -> None:
    page = desktop.open()
    model_ready(page)
    backend.models = ["smollm2", "late"]
    look_again(page)
    expect(page.get_by_role("combobox", name="Model").get_by_role("option")).to_have_text(["smollm2", "late"])


def test_what_another_page_changes_of_a_conversation_is_seen(desktop: Sight, backend: FakeBackend) -> None:
    session = backend.talk("One", "Hi", "Hello")
    page = desktop.open(f"/#{session['id']}")
    expect_answer(page, "Hello")
    session |= {"title": "Elsewhere", "settings": {"system": "Be brief."}}
    look_again(page)
    expect(page.get_by_role("button", name="Elsewhere", exact=True)).to_be_visible()
    with page.expect_request_finished(lambda request: request.method == "PATCH"):
        seed(page, "3")
    assert session["settings"] == {"system": "Be brief.", "seed": 3}


def test_a_change_that_is_not_written_yet_stays_when_the_reader_looks_again(
    desktop: Sight, backend: FakeBackend
) -> None:
    session = backend.talk("One", "Hi", "Hello")
    page = desktop.open(f"/#{session['id']}")
    expect_answer(page, "Hello")
    held: list[Route] = []
    page.route("**/api/sessions/conv_*", lambda r: held.append(r) if r.request.method == "PATCH" else r.fallback())
    with page.expect_request(lambda request: request.method == "PATCH"):
        seed(page, "3")
    session["title"] = "Elsewhere"
    look_again(page)
    expect(page.get_by_role("button", name="Elsewhere", exact=True)).to_be_visible()
    expect(show_settings(page).get_by_role("spinbutton", name="Seed")).to_have_value("3")
    say(page, "Next")
    expect_answer(page, "You said: Next")
    assert backend.asked[0]["seed"] == 3


def test_a_version_that_is_chosen_stays_when_the_reader_looks_again_before_it_is_written(
    desktop: Sight, backend: FakeBackend
) -> None:
    session = backend.talk("One", "Q", "First answer")
    question, first = (message["id"] for message in backend.messages[session["id"]])
    backend.add_message(session, "assistant", "Second answer", parent_id=question)
    page = desktop.open(f"/#{session['id']}")
    expect_answer(page, "Second answer")
    held: list[Route] = []
    page.route("**/api/sessions/conv_*", lambda r: held.append(r) if r.request.method == "PATCH" else r.fallback())
    with page.expect_request(lambda request: request.method == "PATCH"):
        page.get_by_role("button", name="Previous version").click()
    session["title"] = "Elsewhere"
    look_again(page)
    expect(page.get_by_role("button", name="Elsewhere", exact=True)).to_be_visible()
    expect_answer(page, "First answer")
    with page.expect_request_finished(lambda request: request.method == "PATCH"):
        held[0].fallback()
    assert session["head_id"] == first

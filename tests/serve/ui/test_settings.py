"""How answers are chosen, by clicking: for new conversations, for one, kept by the server."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.serve.ui.acts import expect_answer, say, show_settings, told
from tests.serve.ui.browser import Sight
from tests.serve.ui.fake_backend import FakeBackend

ALL = {"temperature": 0.7, "top_k": 40, "top_p": 0.9, "min_p": 0.05, "max_tokens": 128, "seed": 7}
LABELS = {
    "temperature": "Temperature",
    "top_k": "Top-k",
    "top_p": "Top-p",
    "min_p": "Min-p",
    "max_tokens": "Max tokens",
    "seed": "Seed",
}


def test_every_parameter_goes_into_the_next_request(sight: Sight, backend: FakeBackend) -> None:
    page = sight.open()
    panel = show_settings(page)
    panel.get_by_role("textbox", name="System prompt").fill("Be brief.")
    for name, value in ALL.items():
        panel.get_by_role("spinbutton", name=LABELS[name]).fill(str(value))
    panel.get_by_role("button", name="Close the settings").click()
    say(page, "Hello")
    expect_answer(page, "You said: Hello")
    asked = backend.asked[0]
    assert {name: asked[name] for name in (*ALL, "system")} == {**ALL, "system": "Be brief."}
    assert asked["model"] == "smollm2"


def test_what_is_not_set_is_left_to_the_model(desktop: Sight, backend: FakeBackend) -> None:
    page = desktop.open()
    say(page, "Hello")
    expect_answer(page, "You said: Hello")
    assert not {*ALL, "system"} & backend.asked[0].keys()


def test_what_is_not_set_shows_what_the_model_takes(desktop: Sight, backend: FakeBackend) -> None:
    backend.default_sampling = {
        "smollm2": {"temperature": 0.2, "top_k": 0, "top_p": 0.9},
        "qwen3-8b": {"temperature": 0.7, "top_k": 20, "top_p": 0.8},
    }
    page = desktop.open()
    panel = show_settings(page)
    number, slider = (panel.get_by_role(role, name="Temperature") for role in ("spinbutton", "slider"))
    expect(number).to_have_attribute("placeholder", "0.2")
    expect(number).to_have_value("")
    expect(slider).to_have_value("0.2")
    expect(panel.get_by_role("spinbutton", name="Top-k")).to_have_attribute("placeholder", "0")
    expect(panel.get_by_role("slider", name="Top-k")).to_have_value("200")
    desktop.picture("settings-of-the-model")
    number.fill("1.5")
    expect(slider).to_have_value("1.5")
    page.get_by_role("combobox", name="Model").select_option("qwen3-8b")
    expect(number).to_have_attribute("placeholder", "0.7")
    expect(number).to_have_value("1.5")
    expect(slider).to_have_value("1.5")
    expect(panel.get_by_role("slider", name="Top-k")).to_have_value("20")
    number.fill("")
    expect(slider).to_have_value("0.7")


def test_a_limit_of_the_model_can_be_taken_off(desktop: Sight, backend: FakeBackend) -> None:
    backend.default_sampling = {"smollm2": {"top_k": 20, "top_p": 0.8}}
    page = desktop.open()
    show_settings(page).get_by_role("spinbutton", name="Top-k").fill("0")
    say(page, "Hello")
    expect_answer(page, "You said: Hello")
    assert backend.asked[0]["top_k"] == 0


def test_settings_of_new_conversations_are_kept_by_the_server(desktop: Sight, backend: FakeBackend) -> None:
    page = desktop.open()
    with page.expect_response(lambda response: response.request.method == "PUT"):
        show_settings(page).get_by_role("slider", name="Temperature").fill("0.3")
    assert backend.settings["parameters"] == {"temperature": 0.3}
    page.reload()
    expect(show_settings(page).get_by_role("spinbutton", name="Temperature")).to_have_value("0.3")


def test_a_conversation_has_settings_of_its_own(desktop: Sight, backend: FakeBackend) -> None:
    backend.settings = {"parameters": {"temperature": 0.9}}
    session = backend.talk("One", "Hi", "Hello")
    session["settings"] = {"temperature": 0.1, "top_k": "many", "unknown": 1}
    page = desktop.open(f"/#{session['id']}")
    panel = show_settings(page)
    expect(panel).to_contain_text("For this conversation.")
    expect(panel.get_by_role("spinbutton", name="Temperature")).to_have_value("0.1")
    expect(panel.get_by_role("spinbutton", name="Top-k")).to_have_value("")
    with page.expect_response(lambda response: response.request.method == "PATCH"):
        panel.get_by_role("spinbutton", name="Seed").fill("3")
    assert session["settings"] == {"temperature": 0.1, "seed": 3}
    assert backend.settings["parameters"] == {"temperature": 0.9}
    with told(page, "New conversations will begin with these settings."):
        panel.get_by_role("button", name="Use for new conversations too").click()
    assert backend.settings["parameters"] == {"temperature": 0.1, "seed": 3}
    with page.expect_response(lambda response: response.request.method == "PATCH"):
        panel.get_by_role("button", name="Back to the defaults").click()
    assert session["settings"] == {}


def test_a_new_conversation_keeps_what_it_began_with(desktop: Sight, backend: FakeBackend) -> None:
    backend.settings = {"parameters": {"temperature": 0.9}}
    page = desktop.open()
    expect(show_settings(page).get_by_role("spinbutton", name="Temperature")).to_have_value("0.9")
    with page.expect_response(lambda response: response.request.method == "PATCH"):
        say(page, "Hello")
    assert next(iter(backend.sessions.values()))["settings"] == {"temperature": 0.9}


def test_a_wrong_value_is_a_sentence_and_is_not_sent(desktop: Sight, backend: FakeBackend) -> None:
    page = desktop.open()
    # What the server has kept is shown when it comes, and not what could not be kept.
    expect(page.get_by_role("combobox", name="Model")).to_be_enabled()
    panel = show_settings(page)
    temperature = panel.get_by_role("spinbutton", name="Temperature")
    temperature.fill("7")
    expect(panel.get_by_text("Temperature is a number from 0 to 2.")).to_be_visible()
    expect(temperature).to_have_attribute("aria-invalid", "true")
    panel.get_by_role("spinbutton", name="Top-k").fill("1.5")
    expect(panel.get_by_text("Top-k is a whole number from 0 to 1000.")).to_be_visible()
    say(page, "Hello")
    expect_answer(page, "You said: Hello")
    assert not {*ALL} & backend.asked[0].keys()


def test_arrows_go_by_the_step_of_a_number_and_any_number_between_may_be_written(desktop: Sight) -> None:
    page = desktop.open()
    expect(page.get_by_role("combobox", name="Model")).to_be_enabled()
    panel = show_settings(page)
    for label, before, after in (("Temperature", "0.7", "0.75"), ("Min-p", "0.05", "0.06"), ("Seed", "7", "8")):
        field = panel.get_by_role("spinbutton", name=label)
        field.fill(before)
        field.press("ArrowUp")
        expect(field).to_have_value(after)
    top_p = panel.get_by_role("spinbutton", name="Top-p")
    border = top_p.evaluate("field => getComputedStyle(field).borderColor")
    top_p.press_sequentially("0.123")
    top_p.press("Tab")
    expect(top_p).to_have_attribute("aria-invalid", "false")
    assert top_p.evaluate("field => getComputedStyle(field).borderColor") == border


def test_the_model_is_chosen_and_remembered(desktop: Sight, backend: FakeBackend) -> None:
    page = desktop.open()
    model = page.get_by_role("combobox", name="Model")
    with page.expect_response(lambda response: response.request.method == "PUT"):
        model.select_option("qwen3-8b")
    say(page, "Hello")
    expect_answer(page, "You said: Hello")
    assert backend.asked[0]["model"] == "qwen3-8b"
    page.goto(desktop.url)
    expect(model).to_have_value("qwen3-8b")


def test_nothing_can_be_sent_until_a_model_is_ready(desktop: Sight, backend: FakeBackend) -> None:
    backend.models = []
    page = desktop.open()
    expect(page.get_by_role("combobox", name="Model")).to_be_disabled()
    page.get_by_role("textbox", name="Message").fill("Hello")
    expect(page.get_by_role("button", name="Send")).to_be_disabled()
    backend.models = ["late"]
    expect(page.get_by_role("combobox", name="Model")).to_have_value("late")
    expect(page.get_by_role("button", name="Send")).to_be_enabled()

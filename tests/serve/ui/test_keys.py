"""A server that asks for keys: pasted once, kept in the browser, forgotten on leaving."""

from __future__ import annotations

from playwright.sync_api import Route, expect

from tests.serve.ui.acts import expect_answer, look_again, say, show_list
from tests.serve.ui.browser import Sight
from tests.serve.ui.fake_backend import FakeBackend


def test_a_key_is_asked_for_kept_and_forgotten(desktop: Sight, backend: FakeBackend) -> None:
    backend.keys = {"tc-right": "user"}
    page = desktop.open()
    dialog = page.get_by_role("dialog", name="Your key")
    key = dialog.get_by_label("Key", exact=True)
    expect(key).to_be_focused()
    key.fill("tc-wrong")
    key.press("Enter")
    expect(dialog.get_by_role("alert")).to_have_text("The server does not take this key.")
    page.keyboard.press("Escape")
    key.fill(" tc-right ")
    dialog.get_by_role("button", name="Continue").click()
    expect(dialog).to_have_count(0)
    say(page, "Hello")
    expect_answer(page, "You said: Hello")
    page.reload()
    expect_answer(page, "You said: Hello")
    side = show_list(page)
    expect(side.get_by_text("anna")).to_be_visible()
    expect(side.get_by_role("link", name="Cluster", exact=True)).to_be_hidden()
    side.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("dialog", name="Your key")).to_be_visible()
    expect(page.get_by_text("You said: Hello")).to_have_count(0)
    assert page.evaluate("localStorage.getItem('tinycluster.key')") is None


def test_a_key_that_is_taken_back_is_asked_for_anew(desktop: Sight, backend: FakeBackend) -> None:
    backend.keys = {"tc-old": "admin"}
    page = desktop.open()
    page.get_by_label("Key", exact=True).fill("tc-old")
    page.get_by_label("Key", exact=True).press("Enter")
    expect(show_list(page).get_by_role("link", name="Cluster", exact=True)).to_be_visible()
    expect(page.get_by_role("combobox", name="Model")).to_be_enabled()
    # Nothing is on its way that would be refused before the message is.
    expect(page.get_by_text("Your conversations will be here.")).to_be_visible()
    backend.keys = {"tc-new": "admin"}
    say(page, "Hello")
    dialog = page.get_by_role("dialog", name="Your key")
    expect(dialog.get_by_role("alert")).to_have_text("The server does not take the key that this browser has.")
    dialog.get_by_label("Key", exact=True).fill("tc-new")
    dialog.get_by_label("Key", exact=True).press("Enter")
    expect(dialog).to_have_count(0)
    page.get_by_role("button", name="Try again").click()
    expect_answer(page, "You said: Hello")


def test_a_late_refusal_of_a_key_that_has_been_replaced_asks_for_none(desktop: Sight, backend: FakeBackend) -> None:
    backend.keys = {"tc-old": "user"}
    page = desktop.open()
    dialog, key = page.get_by_role("dialog", name="Your key"), page.get_by_label("Key", exact=True)
    key.fill("tc-old")
    key.press("Enter")
    expect(page.get_by_role("combobox", name="Model")).to_be_enabled()
    backend.keys = {"tc-new": "user"}
    late: list[Route] = []
    page.route("**/v1/models", lambda route: late.append(route), times=1)
    with page.expect_request("**/v1/models"):
        look_again(page)
    expect(dialog).to_be_visible()
    key.fill("tc-new")
    key.press("Enter")
    expect(dialog).to_have_count(0)
    with page.expect_response(lambda response: response.url.endswith("/v1/models") and response.status == 401):
        late[0].fallback()
    say(page, "Hello")
    expect_answer(page, "You said: Hello")
    expect(dialog).to_have_count(0)


def test_the_cluster_page_asks_for_the_key_too(desktop: Sight, backend: FakeBackend) -> None:
    backend.keys = {"tc-right": "admin"}
    page = desktop.open("/cluster")
    page.get_by_label("Key", exact=True).fill("tc-right")
    page.get_by_label("Key", exact=True).press("Enter")
    expect(page.get_by_role("region", name="smollm2")).to_be_visible()

"""Dialogs and panels: how they close, what they cover, and where the focus is."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from tests.serve.ui.acts import begun, choose, expect_answer, field, held, look_again, show_list
from tests.serve.ui.browser import OpenSight, Sight
from tests.serve.ui.fake_backend import FakeBackend

NARROW = {"width": 800, "height": 800}


def reachable(page: Page) -> list[str]:
    """The parts of the page that are shown and not inert."""
    parts = page.locator("#side, #main, #settings")
    shown: list[str] = parts.evaluate_all("parts => parts.filter(p => !p.hidden && !p.inert).map(p => p.id)")
    return shown


def test_the_dialog_of_the_key_stays_until_a_key_is_there(desktop: Sight, backend: FakeBackend) -> None:
    backend.keys = {"tc-right": "user"}
    page = desktop.open()
    dialog = page.get_by_role("dialog", name="Your key")
    expect(dialog).to_be_visible()
    page.mouse.click(20, 780)
    for _ in range(3):
        page.keyboard.press("Escape")
    expect(dialog).to_be_visible()
    dialog.get_by_label("Key", exact=True).fill("tc-right")
    dialog.get_by_label("Key", exact=True).press("Enter")
    expect(dialog).to_have_count(0)
    backend.keys = {"tc-next": "user"}
    look_again(page)
    expect(dialog).to_be_visible()


def test_a_dialog_closes_by_a_press_beside_it_and_not_by_a_selection_that_ends_there(
    desktop: Sight, backend: FakeBackend
) -> None:
    session = backend.talk("One", "Hi", "Hello")
    page = desktop.open(f"/#{session['id']}")
    expect_answer(page, "Hello")
    page.locator("#title").click()
    title = page.get_by_label("Title")
    title.fill("A long new title")
    box = title.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 100, box["y"] + 10)
    page.mouse.down()
    page.mouse.move(60, box["y"] + 10, steps=4)
    page.mouse.up()
    expect(title).to_have_value("A long new title")
    page.mouse.click(60, box["y"] + 10)
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_what_cannot_be_undone_is_not_one_press_away(desktop: Sight, backend: FakeBackend) -> None:
    backend.talk("One", "Hi", "Hello")
    page = desktop.open()
    choose(page, "One", "Delete")
    expect(page.get_by_role("dialog").get_by_role("button", name="Cancel")).to_be_focused()


def test_one_panel_at_a_time_covers_a_narrow_page_and_escape_closes_it(open_sight: OpenSight, backend_url: str) -> None:
    page = open_sight(backend_url, viewport=NARROW).open()
    expect(field(page)).to_be_focused()
    page.keyboard.press("Alt+b")
    assert reachable(page) == ["side"]
    page.keyboard.press("Alt+s")
    assert reachable(page) == ["settings"]
    expect(page.get_by_role("button", name="Close the settings")).to_be_focused()
    page.keyboard.press("Escape")
    assert reachable(page) == ["main"]
    expect(page.get_by_role("button", name="Settings", exact=True)).to_be_focused()
    show_list(page).click(position={"x": 100, "y": 400})
    page.keyboard.press("Escape")
    assert reachable(page) == ["main"]


def test_the_focus_goes_into_a_list_that_is_shown_and_back(desktop: Sight) -> None:
    page = desktop.open()
    hide = page.get_by_role("button", name="Hide the list of conversations")
    expect(field(page)).to_be_focused()
    hide.press("Enter")
    show = page.get_by_role("button", name="List of conversations", exact=True)
    expect(show).to_be_focused()
    show.press("Enter")
    expect(hide).to_be_focused()


def test_the_first_picture_on_a_phone_is_the_page_and_not_the_list(open_sight: OpenSight, backend_url: str) -> None:
    page = open_sight(backend_url, "phone").page
    with held(page, "**/ui/chat/page.js"):
        page.goto(backend_url, wait_until="commit")
        expect(page.get_by_role("textbox", name="Message")).to_be_visible()
        expect(page.get_by_role("navigation", name="Conversations")).to_be_hidden()
    begun(page)


def test_what_can_be_done_with_a_conversation_is_seen_without_a_mouse(
    open_sight: OpenSight, backend_url: str, backend: FakeBackend
) -> None:
    backend.talk("One", "Hi", "Hello")
    tablet = {"width": 1180, "height": 820}
    page = open_sight(backend_url, viewport=tablet, has_touch=True, is_mobile=True).open()
    more = show_list(page).get_by_role("button", name="More about One")
    expect(more).to_have_css("opacity", "1")

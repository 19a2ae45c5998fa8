"""The pages for who does not see them or has no mouse: axe, what is read aloud, the focus, the keyboard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.serve.ui.acts import answers, expect_answer, field, say, show_list, show_settings, told
from tests.serve.ui.browser import OpenSight, Sight
from tests.serve.ui.fake_backend import FakeBackend

AXE = (Path(__file__).parent / "vendor" / "axe-core-4.14.1" / "axe.min.js").read_text(encoding="utf-8")
RICH = (
    "# A\n\n`code` [link](https://example.org/)\n\n```python\nx = 1  # one\n```\n\n"
    "| a |\n|---|\n| 1 |\n\n$$x^2$$\n\n> quoted"
)


def faults(page: Page) -> list[str]:
    """What axe finds serious or critical, with the elements."""
    page.evaluate(AXE)
    found: list[dict[str, Any]] = page.evaluate("axe.run().then(found => found.violations)")
    serious = [fault for fault in found if fault["impact"] in ("serious", "critical")]
    return [f"{fault['id']}: {[node['html'][:200] for node in fault['nodes']]}" for fault in serious]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault_in_a_conversation(
    backend: FakeBackend, backend_url: str, open_sight: OpenSight, size: str, scheme: str
) -> None:
    session = backend.talk("Rich", "Hi", RICH)
    backend.add_message(session, "assistant", "Other", parent_id=backend.messages[session["id"]][0]["id"])
    session["head_id"] = backend.messages[session["id"]][1]["id"]
    sight = open_sight(backend_url, size, color_scheme=scheme)
    page = sight.open(f"/#{session['id']}")
    expect(answers(page).locator(".katex").first).to_be_visible()
    expect(answers(page).locator(".code-comment")).to_be_visible()
    sight.picture(f"conversation-{size}-{scheme}")
    assert faults(page) == []
    show_settings(page)
    sight.picture(f"settings-{size}-{scheme}")
    assert faults(page) == []
    page.keyboard.press("Escape") if size == "phone" else page.get_by_label("Close the settings").click()
    show_list(page)
    sight.picture(f"list-{size}-{scheme}")
    assert faults(page) == []


@pytest.mark.parametrize(("size", "scheme"), [("desktop", "light"), ("phone", "dark")])
def test_axe_finds_no_serious_fault_in_the_cluster_page_and_it_fits(
    backend_url: str, open_sight: OpenSight, size: str, scheme: str
) -> None:
    sight = open_sight(backend_url, size, color_scheme=scheme)
    page = sight.open("/cluster")
    expect(page.get_by_role("table", name="What every rank holds and does")).to_be_visible()
    sight.picture(f"cluster-{size}-{scheme}")
    assert faults(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_axe_finds_no_serious_fault_in_empty_pages_menus_dialogs_and_troubles(
    desktop: Sight, backend: FakeBackend
) -> None:
    page = desktop.open()
    expect(page.get_by_role("heading", name="What is on your mind?")).to_be_visible()
    desktop.picture("empty-desktop-light")
    assert faults(page) == []
    backend.talk("One", "Hi", "Hello")
    page.reload()
    show_list(page).get_by_role("link", name="One").hover()
    page.get_by_role("button", name="More about One").click()
    assert faults(page) == []
    page.get_by_role("menuitem", name="Delete").click()
    assert faults(page) == []
    page.get_by_role("button", name="Cancel").click()
    backend.models.clear()
    page.goto(f"{desktop.url}/#conv_absent")
    page.reload()
    expect(page.get_by_role("alert").filter(has_text="no such session")).to_be_visible()
    desktop.picture("trouble-desktop-light")
    assert faults(page) == []


def test_a_fault_is_found_where_there_is_one(desktop: Sight) -> None:
    page = desktop.open()
    page.evaluate("document.querySelector('#input').removeAttribute('aria-label')")
    page.evaluate("document.querySelector('#input').removeAttribute('placeholder')")
    assert any(fault.startswith("label:") for fault in faults(page))


def test_an_answer_is_read_aloud_once_and_whole(desktop: Sight, backend: FakeBackend) -> None:
    backend.holds = True
    page = desktop.open()
    page.evaluate(
        "() => { window.read = []; const region = document.querySelector('#read-aloud');"
        " new MutationObserver(() => read.push(region.textContent)).observe(region, {childList: true}); }"
    )
    say(page, "Aloud")
    expect(answers(page).last).to_have_attribute("aria-busy", "true")
    expect(answers(page).last).to_have_attribute("data-state", "streaming")
    for _ in range(4):
        backend.last_answer.write(3)
    backend.last_answer.write()
    expect_answer(page, "You said: Aloud")
    expect(answers(page).last).not_to_have_attribute("aria-busy", "true")
    assert page.evaluate("read") == ["The answer is being written.", "The answer is complete. You said: Aloud"]


def test_the_focus_goes_where_the_reader_is(desktop: Sight, backend: FakeBackend) -> None:
    backend.talk("One", "Hi", "Hello")
    page = desktop.open()
    expect(field(page)).to_be_focused()
    more = page.get_by_role("button", name="More about One")
    more.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("menuitem", name="Rename")).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(page.get_by_role("menuitem", name="Export")).to_be_focused()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    expect(page.get_by_role("menuitem", name="Delete")).to_be_focused()
    page.keyboard.press("Escape")
    expect(more).to_be_focused()


def test_a_panel_on_a_phone_covers_the_rest_and_gives_the_focus_back(backend_url: str, open_sight: OpenSight) -> None:
    page = open_sight(backend_url, "phone").open()
    side = show_list(page)
    expect(side).to_be_visible()
    assert page.locator("#main").evaluate("main => main.inert")
    page.keyboard.press("Escape")
    expect(side).to_be_hidden()
    expect(page.get_by_role("button", name="List of conversations")).to_be_focused()
    assert not page.locator("#main").evaluate("main => main.inert")


def test_everything_is_done_with_the_keyboard(desktop: Sight, backend: FakeBackend) -> None:
    backend.talk("Older", "Hi", "Hello older")
    backend.talk("Newer", "Hi", "Hello newer")
    page = desktop.open()
    expect(page.locator(".session")).to_have_count(2)
    page.keyboard.press("Alt+ArrowDown")
    expect_answer(page, "Hello newer")
    page.keyboard.press("Alt+ArrowDown")
    expect_answer(page, "Hello older")
    page.keyboard.press("Alt+ArrowUp")
    expect_answer(page, "Hello newer")
    with told(page, "The last answer is copied."):
        page.keyboard.press("Alt+c")
    assert page.evaluate("navigator.clipboard.readText()") == "Hello newer"
    page.keyboard.press("Alt+r")
    expect_answer(page, "You said: Hi")
    page.keyboard.press("Control+k")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.press("Alt+s")
    expect(page.get_by_role("region", name="Settings")).to_be_visible()
    page.keyboard.press("Alt+s")
    page.keyboard.press("Alt+b")
    expect(page.get_by_role("navigation", name="Conversations")).to_be_hidden()
    page.keyboard.press("Alt+n")
    expect(page.get_by_role("heading", name="What is on your mind?")).to_be_visible()
    expect(field(page)).to_be_focused()
    field(page).press("?")
    expect(field(page)).to_have_value("?")


def test_letters_that_option_writes_on_a_mac_are_written(desktop: Sight, backend: FakeBackend) -> None:
    desktop.page.add_init_script("Object.defineProperty(navigator, 'platform', {value: 'MacIntel'})")
    session = backend.talk("One", "Hi", "Hello")
    page = desktop.open(f"/#{session['id']}")
    expect_answer(page, "Hello")
    for keys in ("Alt+n", "Control+k"):
        page.keyboard.press(keys)
        expect(field(page)).to_be_focused()
    expect_answer(page, "Hello")
    expect(page.get_by_role("button", name="New conversation", exact=True)).to_have_attribute(
        "title", "New conversation (Ctrl Option N)"
    )
    page.keyboard.press("Control+Alt+n")
    expect(page.get_by_role("heading", name="What is on your mind?")).to_be_visible()
    page.keyboard.press("Meta+k")
    expect(page.get_by_role("searchbox")).to_be_focused()


def test_escape_stops_an_answer_and_a_question_mark_shows_the_shortcuts(desktop: Sight, backend: FakeBackend) -> None:
    backend.holds = True
    page = desktop.open()
    say(page, "Go")
    expect(answers(page).last).to_have_attribute("data-state", "streaming")
    page.keyboard.press("Escape")
    expect(answers(page).last).to_have_attribute("data-state", "complete")
    page.get_by_role("button", name="Keyboard shortcuts").focus()
    page.keyboard.press("?")
    dialog = page.get_by_role("dialog", name="Keyboard")
    expect(dialog.get_by_text("Stop the answer")).to_be_visible()
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    page.keyboard.press("/")
    expect(field(page)).to_be_focused()


def test_colours_follow_the_system_until_the_reader_chooses(desktop: Sight) -> None:
    page = desktop.open()

    def ground() -> object:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light = ground()
    page.emulate_media(color_scheme="dark")
    dark = ground()
    assert light != dark
    page.get_by_role("button", name="Colours: system").click()
    assert ground() == light
    page.reload()
    assert ground() == light
    page.get_by_role("button", name="Colours: light").click()
    page.emulate_media(color_scheme="light")
    assert ground() == dark
    page.get_by_role("button", name="Colours: dark").click()
    assert ground() == light

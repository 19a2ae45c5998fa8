"""What a reader does with the page, in words. Elements are found as a screen reader finds them: by role and name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Locator, Page, Route, expect

from tests.serve.ui.browser import Sight
from tests.serve.ui.fake_backend import FakeBackend

LONGEST_WAIT_MS = 20_000
WATCH_NOTICES = """text => ({said: new Promise(seen => {
  const region = document.querySelector("#said");
  new MutationObserver(() => region.textContent === text && seen()).observe(region, {childList: true});
})})"""
WAIT_FOR_NOTICE = """({said}, ms) => Promise.race([said, new Promise((_, missed) => {
  setTimeout(() => missed(new Error("the page has not said it")), ms);
})])"""


def field(page: Page) -> Locator:
    return page.get_by_role("textbox", name="Message")


def say(page: Page, text: str) -> None:
    field(page).fill(text)
    page.get_by_role("button", name="Send").click()


def answers(page: Page) -> Locator:
    return page.locator("article.assistant")


def questions(page: Page) -> Locator:
    return page.locator("article.user")


def text_of(message: Locator) -> Locator:
    return message.locator(".message-body")


def expect_answer(page: Page, text: str) -> None:
    """The last answer is complete and is this."""
    last = answers(page).last
    expect(text_of(last)).to_have_text(text)
    expect(last).to_have_attribute("data-state", "complete")


def leave_running(sight: Sight, backend: FakeBackend) -> str:
    """Ask "Go", whose answer is held back, and open another conversation; the address of the first."""
    other = backend.talk("Other", "Hi", "Other answer")
    backend.holds = True
    page = sight.open()
    say(page, "Go")
    expect(answers(page).last).to_have_attribute("data-state", "streaming")
    going = page.url
    page.goto(f"{sight.url}/#{other['id']}")
    expect_answer(page, "Other answer")
    return going


def show_list(page: Page) -> Locator:
    """The list of conversations; on a phone it lies behind a button."""
    begun(page)
    side = page.get_by_role("navigation", name="Conversations")
    if not side.is_visible():
        page.get_by_role("button", name="List of conversations").click()
    return side


def listed(page: Page, title: str) -> Locator:
    return show_list(page).get_by_role("link", name=title, exact=True)


def choose(page: Page, title: str, action: str) -> None:
    """An entry of the menu beside a conversation."""
    listed(page, title).hover()
    page.get_by_role("button", name=f"More about {title}").click()
    page.get_by_role("menuitem", name=action).click()


def show_settings(page: Page) -> Locator:
    begun(page)
    panel = page.get_by_role("region", name="Settings")
    if not panel.is_visible():
        page.get_by_role("button", name="Settings", exact=True).click()
    return panel


def look_again(page: Page) -> None:
    """The reader comes back to the page."""
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


def begun(page: Page) -> None:
    """The page's scripts have begun: panels that were open when it was left are open again."""
    expect(page.locator("#theme")).to_have_attribute("title", re.compile("Colours"))


@contextmanager
def told(page: Page, text: str) -> Iterator[None]:
    """What the body does makes the page say this, in a notice that is gone after some seconds whoever has seen it."""
    notices = page.evaluate_handle(WATCH_NOTICES, text)
    yield
    notices.evaluate(WAIT_FOR_NOTICE, LONGEST_WAIT_MS)


@contextmanager
def held(page: Page, address: str) -> Iterator[None]:
    """The page's requests to this address wait until the body is done; there is one at least."""
    waiting: list[Route] = []
    page.route(address, lambda route: waiting.append(route))
    with page.expect_request(address):
        yield
    page.unroute(address)
    for route in waiting:
        route.fallback()

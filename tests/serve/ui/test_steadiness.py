"""What the reader looks at stays where it is while an answer comes, and the first picture waits for no script."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from tests.serve.ui.acts import answers, expect_answer, held, say, text_of
from tests.serve.ui.browser import Sight
from tests.serve.ui.fake_backend import FakeBackend
from tests.serve.ui.first_paint import PAINTED

WATCH_SHIFTS = """
window.shifts = [];
window.takeShifts = entries => {
  for (const entry of entries) shifts.push({
    value: entry.value,
    what: entry.sources.map(source => source.node?.outerHTML?.slice(0, 200) ?? String(source.node)),
  });
};
window.shiftsSeen = new PerformanceObserver(list => takeShifts(list.getEntries()));
shiftsSeen.observe({type: "layout-shift", buffered: true});
"""
WHOLE = (
    "# Title\n\nA paragraph with **bold** text, `code` and a formula $a^2 + b^2$ that goes on over more than one line, "
    "so that it wraps.\n\n- one\n- two\n  - three\n\n```python\ndef f(x):\n    return x + 1  # a comment\n```\n\n"
    "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |\n\n> A quotation.\n\n$$\\sum_{i=0}^n i$$\n\nThe end of it.\n\n"
)
BIG_SHIFT = 0.001
"""Of the screen's area times the way that it moved: a tenth of what one line moves that is as wide as the text."""


LONG_ENOUGH = """length => new Promise(shown => {
  const look = () => document.querySelectorAll("article.assistant")[1].innerText.length > length
    ? shown() : requestAnimationFrame(look);
  look();
})"""
"""Without Playwright's own waiting, which evaluates text, as the page's policy forbids."""


def shifts(page: Page) -> list[object]:
    """The browser reports them after the picture in which they happen."""
    page.evaluate("new Promise(seen => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(seen))))")
    page.evaluate("takeShifts(shiftsSeen.takeRecords())")
    found: list[object] = page.evaluate(f"shifts.filter(shift => shift.value > {BIG_SHIFT})")
    return found


def forget_shifts(page: Page) -> None:
    """Those until here, among them those of a formula whose fonts have just come."""
    page.evaluate("document.fonts.ready.then(() => null)")
    shifts(page)
    page.evaluate("shifts.length = 0")


def test_nothing_moves_while_an_answer_is_written(sight: Sight, backend: FakeBackend) -> None:
    backend.talk("Before", "Hi", WHOLE)
    backend.holds, backend.answers["Go"] = True, WHOLE * 2
    sight.page.add_init_script(WATCH_SHIFTS)
    page = sight.open(f"/#{next(iter(backend.sessions))}")
    expect(answers(page).locator(".katex-display")).to_be_visible()
    say(page, "Go")
    expect(answers(page).last).to_have_attribute("data-state", "streaming")
    forget_shifts(page)
    run = backend.last_answer
    while run.num_written < len(run.text):
        run.write(40)
        shown = run.num_written
        page.evaluate(LONG_ENOUGH, shown // 3)
    expect(answers(page).last).to_have_attribute("data-state", "complete")
    assert shifts(page) == []


def test_a_shift_is_seen(desktop: Sight, backend: FakeBackend) -> None:
    session = backend.talk("One", "Hi", WHOLE)
    desktop.page.add_init_script(WATCH_SHIFTS)
    page = desktop.open(f"/#{session['id']}")
    expect(answers(page).locator(".katex-display")).to_be_visible()
    forget_shifts(page)
    page.evaluate("document.querySelector('#message-list').style.paddingTop = '100px'")
    page.evaluate("document.querySelector('#messages').scrollTop = 0")
    assert shifts(page) != []


def test_the_first_picture_comes_before_any_script_of_the_page(desktop: Sight, backend: FakeBackend) -> None:
    page = desktop.page
    with held(page, "**/ui/chat/page.js"):
        page.goto(desktop.url, wait_until="commit")
        assert page.evaluate(PAINTED) > 0
    say(page, "Hello")
    expect_answer(page, "You said: Hello")


def test_only_the_last_block_of_a_growing_answer_is_made_anew(desktop: Sight, backend: FakeBackend) -> None:
    backend.holds, backend.answers["Go"] = True, "First.\n\nSecond.\n\nThird grows."
    page = desktop.open()
    say(page, "Go")
    expect(answers(page).last).to_have_attribute("data-state", "streaming")
    backend.last_answer.write(len("First.\n\nSecond."))
    paragraphs = text_of(answers(page).last).locator("p")
    expect(paragraphs).to_have_text(["First.", "Second."])
    page.evaluate("window.first = document.querySelector('.assistant p')")
    backend.last_answer.write()
    expect(paragraphs).to_have_text(["First.", "Second.", "Third grows."])
    assert page.evaluate("document.querySelector('.assistant p') === first")


def test_a_growing_answer_ends_as_it_would_have_been_shown_whole(desktop: Sight, backend: FakeBackend) -> None:
    text = (
        WHOLE
        + "[a link][1] and text\n\n1. one\n\n   more of one\n2. two\n\n\n    indented code\n\n[1]: https://example.org/"
    )
    backend.answers["Go"], backend.piece_chars = text, 3
    page = desktop.open()
    say(page, "Go")
    expect(answers(page).last).to_have_attribute("data-state", "complete")
    expect(answers(page).locator(".katex-display")).to_be_visible()
    expect(answers(page).locator(".code-comment")).to_be_visible()
    grown = text_of(answers(page).last).evaluate("body => body.innerHTML.replaceAll('<div class=\"holder\">', '')")
    page.reload()
    expect(answers(page).locator(".katex-display")).to_be_visible()
    expect(answers(page).locator(".code-comment")).to_be_visible()
    assert text_of(answers(page).last).evaluate("body => body.innerHTML") == grown


def test_a_long_conversation_shows_its_end_first(desktop: Sight, backend: FakeBackend) -> None:
    session = backend.talk("Long", *(f"Text {number}" for number in range(400)))
    page = desktop.open(f"/#{session['id']}")
    expect(page.get_by_text("Text 399", exact=True)).to_be_in_viewport()
    assert page.locator("article").count() == 60
    page.locator("#messages").evaluate("messages => messages.scrollTop = 0")
    page.get_by_role("button", name="Show 120 earlier messages").click()
    expect(page.locator("article")).to_have_count(180)
    expect(page.get_by_text("Text 340", exact=True)).to_be_in_viewport()


def test_a_growing_line_of_a_megabyte_leaves_the_page_at_work(desktop: Sight, backend: FakeBackend) -> None:
    backend.answers["Go"], backend.piece_chars = "x" * 2**20, 2**15
    page = desktop.open()
    say(page, "Go")
    page.get_by_role("textbox", name="Message").fill("Meanwhile")
    expect(answers(page).last).to_have_attribute("data-state", "complete")
    assert text_of(answers(page).last).evaluate("body => body.textContent.length") == 2**20
    expect(page.get_by_role("textbox", name="Message")).to_have_value("Meanwhile")


def test_what_the_reader_has_selected_stays_selected_while_its_block_grows(
    desktop: Sight, backend: FakeBackend
) -> None:
    listed, code = "- one item\n- more " + "word " * 40, "```python\nx = 1\n" + "y = 2  # two\n" * 20 + "```\n"
    backend.holds, backend.answers["Go"] = True, f"{listed}\n\n{code}\n\nThe end."
    page = desktop.open()
    say(page, "Go")
    expect(answers(page).last).to_have_attribute("data-state", "streaming")

    def grown_by(num_chars: int, selector: str) -> str:
        before = str(text_of(answers(page).last).text_content())
        page.evaluate(f"getSelection().selectAllChildren(document.querySelector('.assistant {selector}'))")
        backend.last_answer.write(num_chars)
        expect(text_of(answers(page).last)).not_to_have_text(before)
        return str(page.evaluate("String(getSelection())")).strip()

    backend.last_answer.write(40)
    expect(page.locator(".assistant li")).to_have_count(2)
    assert grown_by(50, "li") == "one item"
    backend.last_answer.write(len(listed) - backend.last_answer.num_written + 34)
    expect(page.locator(".assistant .code-comment").first).to_be_visible()
    assert grown_by(60, ".code-number") == "1"
    assert grown_by(len(code), ".code-number") == "1"
    backend.last_answer.write()
    expect(answers(page).last).to_have_attribute("data-state", "complete")
    assert page.evaluate("String(getSelection())") == "1"


def test_a_long_block_of_code_shows_its_newest_line(desktop: Sight, backend: FakeBackend) -> None:
    backend.holds = True
    backend.answers["Go"] = "```python\n" + "".join(f"x{number} = {number}\n" for number in range(200)) + "```\n"
    page = desktop.open()
    say(page, "Go")
    expect(answers(page).last).to_have_attribute("data-state", "streaming")
    backend.last_answer.write(2000)
    expect(page.locator(".assistant pre")).to_contain_text("x150")
    expect(page.get_by_role("button", name="To the newest message")).to_be_hidden()
    assert page.locator(".assistant pre").evaluate("pre => pre.scrollHeight - pre.clientHeight") <= 1

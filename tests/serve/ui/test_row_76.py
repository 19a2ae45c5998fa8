"""Row 76 of the attacks: what a model, a title or an imported file says is shown as text, whatever it looks like."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.serve.ui.acts import answers, listed, questions, text_of
from tests.serve.ui.browser import Sight
from tests.serve.ui.fake_backend import FakeBackend

ATTACKS = {
    "script": "<script>alert(1)</script>",
    "handler": "<img src=x onerror=alert(1)>",
    "svg": "<svg onload=alert(1)><a href='javascript:alert(1)'>x</a></svg>",
    "frame": "<iframe src='https://evil.example/'></iframe><object data='https://evil.example/'></object>",
    "style": "<style>@import 'https://evil.example/a.css'; * { background: url(https://evil.example/b) }</style>",
    "form": "<form action='https://evil.example/'><button>Send</button></form><base href='https://evil.example/'>",
    "template": "<template shadowrootmode=open><script>alert(1)</script></template><math><mtext><script>alert(1)",
    "ansi": "\x1b[31mred\x1b[0m \x1b]8;;https://evil.example/\x07click\x1b]8;;\x07 \x1b[2J",
    "overrides": "abc\u202edcba\u2066 \u0000 \ufffd",
}
LINKS = (
    "[a](javascript:alert(1)) [b](JaVaScRiPt:alert(1)) [c](data:text/html,<script>alert(1)</script>) "
    "[d](vbscript:msgbox) [e](java&#115;cript:alert(1)) <javascript:alert(1)> [f](file:///etc/passwd) "
    "[g]( javascript:alert(1)) [h](\x01javascript:alert(1)) [i](blob:https://evil.example/x) [j](//evil.example/)"
)
PICTURE = (
    "![alt](https://evil.example/pixel.png) ![](//evil.example/x.png) ![x](data:image/svg+xml,<svg onload=alert(1)>)"
)
FORMULA = (
    r"$\href{javascript:alert(1)}{x}$ $\includegraphics{https://evil.example/x.png}$ "
    r"$\htmlStyle{background:url(https://evil.example/)}{x}$ $\url{javascript:alert(1)}$ $\def\a{\a\a}\a$"
)
FENCE = "```<script>alert(1)</script>\n<script>alert(1)</script>\n```\n\n```html\n<img src=x onerror=alert(1)>\n```"


def test_row_76_markup_is_text_in_answers_messages_and_titles(desktop: Sight, backend: FakeBackend) -> None:
    sessions = {name: backend.talk(attack, attack, attack) for name, attack in ATTACKS.items()}
    for name, session in sessions.items():
        attack, answer = ATTACKS[name], backend.messages[session["id"]][1]["id"]
        page = desktop.open(f"/#{session['id']}")
        shown = text_of(page.locator(f'[data-id="{answer}"]'))
        expect(shown).to_have_count(1)
        for visible in (shown, text_of(questions(page).last)):
            assert visible.locator("script, img, svg, iframe, object, style, form, base, template, math").count() == 0
        if name not in ("ansi", "overrides"):
            expect(shown).to_have_text(attack)
            expect(listed(page, attack)).to_be_visible()
            expect(page.get_by_role("main").get_by_role("button", name=attack, exact=True)).to_be_visible()
        assert page.title().endswith("tinycluster")


def test_row_76_addresses_that_run_something_are_not_links(desktop: Sight, backend: FakeBackend) -> None:
    session = backend.talk("Links", "Hi", f"{LINKS}\n\n{PICTURE}\n\n{FORMULA}\n\n{FENCE}\n\n[ok](https://example.org/)")
    page = desktop.open(f"/#{session['id']}")
    shown = text_of(answers(page).last)
    expect(shown.get_by_role("link", name="ok")).to_be_visible()
    expect(shown.locator(".katex").first).to_be_visible()
    addresses = shown.locator("a").evaluate_all("links => links.map(link => link.href)")
    assert addresses
    assert all(address.startswith(("https://", "mailto:")) for address in addresses)
    assert shown.locator("img, script, [onerror], [onload], [style*=url]").count() == 0


def test_row_76_a_click_on_every_link_runs_nothing(desktop: Sight, backend: FakeBackend) -> None:
    session = backend.talk("Links", "Hi", LINKS)
    page = desktop.open(f"/#{session['id']}")
    expect(answers(page)).to_have_count(1)
    before = page.url
    for element in text_of(answers(page).last).locator(".no-link, p").all():
        element.click()
    assert page.url == before


def test_row_76_a_line_of_a_megabyte_is_shown_and_the_page_goes_on(desktop: Sight, backend: FakeBackend) -> None:
    texts = [unit * (2**20 // len(unit)) for unit in ("x", "<b>", "[", "a ", "`*_", "|", "> ")]
    sessions = [backend.talk("Long", "Hi", text) for text in texts]
    for text, session in zip(texts, sessions, strict=True):
        page = desktop.open(f"/#{session['id']}")
        shown = text_of(page.locator(f'[data-id="{backend.messages[session["id"]][1]["id"]}"]'))
        assert shown.evaluate("body => body.textContent.length") == len(text)
        page.get_by_role("textbox", name="Message").fill("Still here")
        expect(page.get_by_role("button", name="Send")).to_be_enabled()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")

"""`python -m tests.serve.ui.first_paint`: how many ms after its address is entered a page shows something.

Each time with a browser that has never seen the page. A busy machine says nothing about the page.
"""

from __future__ import annotations

import statistics
import sys
from contextlib import closing

from playwright.sync_api import Browser

from tests.serve.ui.browser import OneBrowser, options
from tests.serve.ui.fake_backend import FakeBackend
from tests.serve.ui.fake_routes import fake_app
from tests.serve.ui.snapshot import snapshot
from tests.system_packages import needed
from tinycluster.serve.http_server import HttpServer
from tinycluster.serve.listener import listen, url_of

NUM_LOADS = 11
PAINTED = """new Promise(painted => new PerformanceObserver(list => {
  for (const entry of list.getEntriesByName("first-contentful-paint")) painted(entry.startTime);
}).observe({type: "paint", buffered: true}))"""


def first_paint_ms(browser: Browser, url: str) -> float:
    context = browser.new_context(**options("desktop"))
    with closing(context):
        page = context.new_page()
        page.goto(url, wait_until="commit")
        return float(page.evaluate(PAINTED))


def main() -> None:
    listener = listen("127.0.0.1", 0)
    server = HttpServer(fake_app(FakeBackend(snapshot=snapshot())), listener)
    server.start()
    with closing(OneBrowser()) as one:
        browser = one.get(needed("chromium"))
        for path in ("/", "/cluster"):
            times_ms = sorted(first_paint_ms(browser, url_of(listener) + path) for _ in range(NUM_LOADS))
            sys.stdout.write(f"{path}: median {statistics.median(times_ms):.0f}, most {times_ms[-1]:.0f}\n")
    server.stop()


if __name__ == "__main__":
    main()

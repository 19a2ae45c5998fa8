"""A browser, and a server of the page's files over the fake backend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.serve.ui.browser import OneBrowser, OpenSight, Sight, options
from tests.serve.ui.fake_backend import FakeBackend
from tests.serve.ui.fake_routes import fake_app
from tests.serve.ui.snapshot import snapshot
from tests.system_packages import needed
from tinycluster.serve.http_server import HttpServer
from tinycluster.serve.listener import listen, url_of

BROWSER = pytest.StashKey[OneBrowser]()
HERE = Path(__file__).parent


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """What follows in other folders may need an event loop of its own."""
    has_more = nextitem is not None and nextitem.path.is_relative_to(HERE)
    if not has_more and BROWSER in item.session.stash:
        item.session.stash[BROWSER].close()


@pytest.fixture(scope="session")
def one_browser(request: pytest.FixtureRequest) -> Iterator[OneBrowser]:
    with closing(OneBrowser()) as started:
        request.session.stash[BROWSER] = started
        yield started


@pytest.fixture
def open_sight(one_browser: OneBrowser) -> Iterator[OpenSight]:
    """open_sight(url, size="desktop", **options of the browser's context). At the end nothing has gone wrong in any."""
    chromium = needed("chromium")
    expect.set_options(timeout=20_000)
    sights: list[Sight] = []
    with ExitStack() as opened:

        def open_one(url: str, size: str = "desktop", **more: object) -> Sight:
            sights.append(Sight(one_browser.context(chromium, **options(size, **more)).new_page(), url))
            opened.callback(sights[-1].leave)
            return sights[-1]

        yield open_one
        for sight in sights:
            sight.check()


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend(snapshot=snapshot())


@pytest.fixture
def backend_url(backend: FakeBackend) -> Iterator[str]:
    listener = listen("127.0.0.1", 0)
    server = HttpServer(fake_app(backend), listener)
    server.start()
    yield url_of(listener)
    backend.is_away = True
    server.stop()


@pytest.fixture(params=["desktop", "phone"])
def size(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def sight(backend_url: str, open_sight: OpenSight, size: str) -> Sight:
    """At both sizes: a page that is not opened yet, so that the test can say before what the server has."""
    return open_sight(backend_url, size)


@pytest.fixture
def desktop(backend_url: str, open_sight: OpenSight) -> Sight:
    return open_sight(backend_url)

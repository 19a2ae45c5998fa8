"""The files of the web pages as they are served: nothing but the table's, with headers that keep strangers out."""

from __future__ import annotations

import http.client
import json
import re
import time
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from tinycluster.serve.ui_routes import FOLDER, static_files

MAX_FILE_BYTES = 1_000_000
PAGES = {"/": "index.html", "/cluster": "cluster.html"}
IMPORT = re.compile(r'^(?:import|export)\b[^;]*?from "([^"]+)"', re.MULTILINE)


@pytest.mark.parametrize("path", [*PAGES, "/ui/design.css", "/ui/chat/page.js"])
def test_every_file_tells_the_browser_to_load_from_here_only(client: httpx.Client, path: str) -> None:
    headers = client.get(path).headers
    policy = {part.split(" ", 1)[0]: part.split(" ", 1)[1] for part in headers["content-security-policy"].split("; ")}
    assert policy["default-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["object-src"] == "'none'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize(("path", "name"), PAGES.items())
def test_a_page_is_its_file(client: httpx.Client, path: str, name: str) -> None:
    response = client.get(path)
    assert response.content == (FOLDER / name).read_bytes()
    assert response.headers["content-type"] == "text/html; charset=utf-8"


def test_a_browser_that_has_a_file_is_told_so(client: httpx.Client) -> None:
    first = client.get("/ui/design.css")
    again = client.get("/ui/design.css", headers={"if-none-match": f'"other", W/{first.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    assert client.get("/ui/design.css", headers={"if-none-match": '"other"'}).status_code == 200


def test_what_never_changes_is_kept_for_a_year_and_the_rest_is_asked_for(client: httpx.Client) -> None:
    vendored = next(name for name in static_files(FOLDER) if name.startswith("vendor/"))
    assert "immutable" in client.get(f"/ui/{vendored}").headers["cache-control"]
    assert client.get("/ui/chat/page.js").headers["cache-control"] == "no-cache"


@pytest.mark.parametrize(
    "path",
    [
        "/ui/",
        "/ui/absent.js",
        "/ui/vendor",
        "/ui/vendor/VENDORED",
        "/ui/../ui_routes.py",
        "/ui/..%2fui_routes.py",
        "/ui/%2e%2e/ui_routes.py",
        "/ui/chat/..%2f..%2fui_routes.py",
        "/ui/..%5cui_routes.py",
        "/ui/design.css%00",
        "/ui/design.css/",
        "/ui//design.css",
        "/ui/./design.css",
        "/ui../serve/ui_routes.py",
        "/ui/%2fetc/passwd",
        "/ui/DESIGN.CSS",
    ],
)
def test_a_name_that_is_not_exactly_in_the_table_is_not_found(fake_url: str, path: str) -> None:
    # This client sends paths as they are written: one that tidies them would hide what is tested.
    connection = http.client.HTTPConnection(httpx.URL(fake_url).netloc.decode(), timeout=20)
    with closing(connection):
        connection.request("GET", path)
        response = connection.getresponse()
        assert response.status in (400, 404)
        assert "error" in json.load(response)


def test_a_link_out_of_the_folder_is_only_what_it_was_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "a.css").write_text("a { }")
    files = static_files(tmp_path)
    (tmp_path / "a.css").unlink()
    (tmp_path / "a.css").symlink_to("/etc/hostname")
    assert files["a.css"].content == b"a { }"


def test_ten_thousand_ranges_get_the_whole_file_soon(client: httpx.Client) -> None:
    ranges = ",".join(f"{at}-{at}" for at in range(0, 20000, 2))
    assert client.get("/ui/design.css", headers={"range": f"bytes={ranges[:30000]}"}).status_code in (200, 416, 431)


def test_files_are_small_and_read_once() -> None:
    started_s = time.process_time()
    files = static_files(FOLDER)
    assert time.process_time() - started_s < 5
    assert max(len(file.content) for file in files.values()) < MAX_FILE_BYTES


def imported(path: Path, seen: set[Path]) -> set[Path]:
    if path not in seen:
        seen.add(path)
        for target in IMPORT.findall(path.read_text(encoding="utf-8")):
            imported((path.parent / target).resolve(), seen)
    return seen


@pytest.mark.parametrize(("page", "entry"), [("index.html", "chat/page.js"), ("cluster.html", "cluster/page.js")])
def test_a_page_names_every_module_that_it_will_import(page: str, entry: str) -> None:
    """So that the browser asks for all of them at once, and not for one after the other."""
    folder = FOLDER.resolve()
    wanted = {f"/ui/{path.relative_to(folder).as_posix()}" for path in imported(folder / entry, set())}
    named = re.findall(r'rel="modulepreload" href="([^"]+)"', (folder / page).read_text(encoding="utf-8"))
    assert sorted(named) == sorted(wanted)


def test_scripts_never_turn_text_into_markup_or_code() -> None:
    forbidden = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser|srcdoc"
    )
    own = [path for path in FOLDER.rglob("*.js") if "vendor" not in path.parts]
    assert len(own) > 20
    assert {path.name: forbidden.findall(path.read_text(encoding="utf-8")) for path in own} == {
        path.name: [] for path in own
    }


def test_markup_has_no_script_style_or_address_of_elsewhere() -> None:
    for name in PAGES.values():
        text = (FOLDER / name).read_text(encoding="utf-8")
        assert not re.search(r"\son\w+=|\sstyle=|<style|<script(?![^>]*\ssrc=)|//\w", text)

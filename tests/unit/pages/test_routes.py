from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from doors import Door, open_door

PAGES = Path(__file__).parents[3] / "src" / "modelworks" / "pages"
MOST_BYTES_OF_STATIC = 3 * 2**20


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    with open_door(tmp_path) as found:
        yield found


@pytest.mark.parametrize(
    ("port", "title"), [(5000, "Training dashboard"), (8000, "Modelworks</title>"), (1234, "Modelworks</title>")]
)
def test_the_port_decides_what_stands_at_the_root(door: Door, port: int, title: str) -> None:
    client = TestClient(door.asgi, base_url=f"http://127.0.0.1:{port}")

    assert title in client.get("/").text
    assert "Training dashboard" in client.get("/modelworks/dashboard?job=x").text


OWN = [f"/modelworks/{name}" for name in ("home", "dashboard", "new", "data", "model", "chat")]


@pytest.mark.parametrize("path", ["/", "/docs", "/redoc", *OWN])
def test_a_page_loads_only_what_is_here_and_has_no_script_or_style_inside(door: Door, path: str) -> None:
    page = door.client.get(path)

    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", page.text) == []
    loaded = re.findall(r'<(?:script|link|img)[^>]*?(?:src|href)="([^"]+)"', page.text)
    assert len(loaded) >= 3
    for address in loaded:
        assert address.startswith("/modelworks/static/")
        assert door.client.get(address).status_code == 200


def test_only_the_readers_of_the_api_may_write_styles(door: Door) -> None:
    policies = {path: door.client.get(path).headers["content-security-policy"] for path in ("/", "/docs", "/redoc")}

    assert "unsafe" not in policies["/"]
    for path in ("/docs", "/redoc"):
        assert "style-src 'self' 'unsafe-inline'" in policies[path]
        assert "script-src" not in policies[path]
        assert policies[path].startswith("default-src 'self';")


@pytest.mark.parametrize("path", OWN)
def test_every_page_leads_to_every_other_and_names_its_fields(door: Door, path: str) -> None:
    page = door.client.get(path).text
    named = set(re.findall(r'<label[^>]* for="([^"]+)"', page)) | set(re.findall(r'id="([^"]+)"[^>]* aria-label', page))

    assert {address for address in OWN if address != "/modelworks/model"} <= set(re.findall(r'href="([^"]+)"', page))
    assert len(re.findall(r"<h1", page)) >= 1
    for field in re.finditer(r'<(?:input|select|textarea)[^>]*\bid="([^"]+)"', page):
        before = page[: field.start()]
        assert before.count("<label") > before.count("</label") or field[1] in named, field[0]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("app.css", "text/css"), ("dashboard.js", "text/javascript"), ("icon.svg", "image/svg+xml"),
        ("vendor/uplot/uPlot.iife.min.js", "text/javascript"), ("vendor/uplot/uPlot.min.css", "text/css"),
    ],
)  # fmt: skip
def test_a_static_file_has_its_type_and_is_sent_once(door: Door, name: str, kind: str) -> None:
    address = f"/modelworks/static/{name}"
    first = door.client.get(address)
    again = door.client.get(address, headers={"If-None-Match": first.headers["etag"]})

    assert first.headers["content-type"].split(";")[0] == kind
    assert first.headers["cache-control"] == "no-cache"
    assert (again.status_code, again.content) == (304, b"")
    assert door.client.head(address).headers["content-length"] == str(len(first.content))


@pytest.mark.parametrize("name", ["nothing.js", "../routes.py", "..%2froutes.py", "%2e%2e/routes.py", "vendor", ""])
def test_nothing_else_is_served(door: Door, name: str) -> None:
    assert door.client.get(f"/modelworks/static/{name}").status_code == 404


def test_what_is_vendored_stays_small_and_has_its_licence() -> None:
    vendor = PAGES / "static" / "vendor"

    assert sum(file.stat().st_size for file in vendor.rglob("*") if file.is_file()) < MOST_BYTES_OF_STATIC
    assert all((folder / "LICENSE").exists() for folder in vendor.iterdir() if folder.is_dir())


def test_scripts_write_text_and_never_markup() -> None:
    own = [*(PAGES / "static").glob("*.js")]

    assert len(own) >= 6
    assert [
        file.name
        for file in own
        if re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", file.read_text())
    ] == []

"""The SLM API's web page in a real browser: as a file, from another port, and as the server's own."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.surfaces.blocks import blocks
from contract.surfaces.chromium import Page, browsing
from contract.surfaces.world import Sources, World, serving

QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, sources: Sources) -> Iterator[World]:
    home = tmp_path_factory.mktemp("page") / "home"
    sources.fill(home, None, None)
    with serving(home, "--cors-origin", "null") as world:
        yield world


@pytest.fixture
def page(chromium: str, tmp_path: Path) -> Iterator[Page]:
    with browsing(chromium, tmp_path / "profile") as page:
        yield page


@pytest.fixture
def printed(tmp_path: Path) -> Path:
    """The document's page, as a file."""
    path = tmp_path / "chat.html"
    path.write_text(blocks()["S4-15"].text)
    return path


@pytest.fixture
def elsewhere(printed: Path) -> Iterator[str]:
    """The folder of the page, served from a port of its own."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the standard library's
            pass

    handler = functools.partial(Quiet, directory=str(printed.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}/{printed.name}"
        server.shutdown()


def ask(page: Page) -> list[str]:
    page.type("#prompt", QUESTION)
    page.click("button")
    page.wait_for("document.querySelectorAll('#chat p').length == 2")
    lines: list[str] = page.evaluate("[...document.querySelectorAll('#chat p')].map(each => each.innerText)")
    return lines


def test_the_page_opened_as_a_file_shows_the_answer(world: World, page: Page, printed: Path) -> None:
    page.open(printed.as_uri())

    asked, answer = ask(page)

    assert asked == f"You: {QUESTION}"
    assert answer.startswith("AI: ")
    assert answer != "AI: undefined"
    assert page.evaluate("document.getElementById('prompt').value") == ""


def test_the_page_from_another_port_of_this_machine_shows_the_answer(world: World, page: Page, elsewhere: str) -> None:
    page.open(elsewhere)

    asked, answer = ask(page)

    assert (asked, answer.partition(": ")[0]) == (f"You: {QUESTION}", "AI")
    assert answer != "AI: undefined"


def test_the_servers_own_chat_page_shows_the_answer_without_a_complaint(world: World, page: Page) -> None:
    page.open(world.url("/slm/chat", 5000))

    page.type("#prompt", QUESTION)
    page.click("#send")
    page.wait_for("/^[0-9.]+ s on|ended at once/.test(document.querySelector('.note')?.textContent)")

    turns = page.evaluate("[...document.querySelectorAll('.said')].map(each => each.textContent)")
    assert (len(turns), turns[0]) == (2, QUESTION)
    assert page.said == []

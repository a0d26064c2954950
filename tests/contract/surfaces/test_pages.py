"""The server's own pages in a real browser: rows looked at, a merge from the form, its family tree, a chat of two."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from contract.surfaces.chromium import Page, browsing
from contract.surfaces.world import Sources, World, serving

GUIDES = Path(__file__).parents[3] / "docs" / "guides"
BASE, CODE, ALGEBRA = "Qwen/Qwen2.5-0.5B", "InfiX-ai/Qwen-base-0.5B-code", "InfiX-ai/Qwen-base-0.5B-algebra"
CHOSEN = "[...document.querySelectorAll('[data-field={field}] input')].filter(box => {names}.includes(box.value))"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, sources: Sources) -> Iterator[World]:
    home = tmp_path_factory.mktemp("pages") / "home"
    sources.fill(home, None, None)
    with serving(home) as world:
        yield world


@pytest.fixture
def page(chromium: str, tmp_path: Path) -> Iterator[Page]:
    with browsing(chromium, tmp_path / "profile") as page:
        page.call("Emulation.setDeviceMetricsOverride", width=1300, height=2400, deviceScaleFactor=1, mobile=False)
        yield page


def text(page: Page, selector: str) -> str:
    found: str = page.evaluate(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")
    return found


def choose_file(page: Page, name: str, content: str) -> None:
    page.evaluate(
        f"(() => {{ const all = new DataTransfer(); all.items.add(new File([{json.dumps(content)}], {name!r}));"
        "const box = document.getElementById('file'); box.files = all.files;"
        "box.dispatchEvent(new Event('change', {bubbles: true})); })()"
    )


def test_rows_are_looked_at_as_a_model_reads_them_and_what_is_wrong_is_told_by_line(world: World, page: Page) -> None:
    rows = [{"instruction": f"Count to {number}.", "output": f"up to {number}"} for number in range(40)]
    page.open(world.url("/modelworks/data"))
    page.wait_for(f"[...document.querySelectorAll('#model option')].some(each => each.value === '{BASE}')")
    page.evaluate(f"document.getElementById('model').value = '{BASE}'")
    choose_file(page, "sums.jsonl", "\n".join([*map(json.dumps, rows), "no json"]))

    page.click("#dry")

    page.wait_for("document.querySelectorAll('#seen mark').length >= 3")
    assert "nothing was kept" in text(page, "#seen h2")
    assert "line 41" in text(page, "#seen")
    assert text(page, "#seen mark").startswith("up to")
    page.click("#form .main")
    page.wait_for("document.querySelector('#list').innerText.includes('sums')")
    assert page.said == []


def test_a_merge_from_the_form_ends_as_a_model_with_parents_that_can_be_chatted_with(world: World, page: Page) -> None:
    page.open(world.url(f"/modelworks/new?kind=merge&base={BASE}"))
    page.wait_for("document.querySelector('[data-field=models] input')")
    page.evaluate(CHOSEN.format(field="models", names=json.dumps([CODE, ALGEBRA])) + ".forEach(box => box.click())")
    page.type("[data-field=name] input", "me/both")
    assert text(page, "#command code") == f"modelworks merge --base {BASE} --models {ALGEBRA} {CODE} --name me/both"
    page.click("#check")
    page.wait_for("document.querySelector('#estimate').innerText.includes('tensors merged')")

    page.click("#form .main")

    page.arrive()
    page.wait_for("document.getElementById('status')?.textContent == 'completed'")
    page.wait_for("document.querySelector('#result img')?.naturalWidth > 0")
    page.open(world.url("/modelworks/model?name=me/both"))
    page.wait_for("document.querySelectorAll('#lineage li').length == 4")
    assert BASE in text(page, "#lineage")

    page.open(world.url(f"/modelworks/chat?model=me/both&beside={CODE}"))
    page.wait_for("document.getElementById('beside').value != ''")
    page.evaluate("document.getElementById('max_tokens').value = 4")
    page.type("#prompt", "Hello")
    page.click("#send")
    page.wait_for(
        "[...document.querySelectorAll('article .quiet')].filter(x => /4 tokens/.test(x.innerText)).length == 2"
    )
    page.open(world.url("/modelworks/home"))
    page.wait_for("document.querySelectorAll('#serving button').length == 2")
    page.click("#serving button")
    page.wait_for("document.querySelectorAll('#serving button').length == 1")
    assert page.said == []


def test_what_is_wrong_with_a_form_is_told_on_it(world: World, page: Page) -> None:
    page.open(world.url("/modelworks/new?kind=train&model=nobody"))
    page.wait_for("document.querySelector('[data-field=learning_rate] input')")
    page.type("[data-field=learning_rate] input", "fast")

    page.click("#form .main")

    page.wait_for("!document.getElementById('error').hidden")
    told = text(page, "#error")
    assert "dataset" in told
    assert "learning_rate" in told


def plain(value: Any) -> Any:
    """As both readers agree: YAML 1.1 takes 1e-4 for a text, which a spec then reads as the number."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return float(value) if isinstance(value, str) and re.fullmatch(r"[\d.]+e-?\d+", value) else value


def test_the_form_reads_the_guides_files_as_the_server_does(world: World, page: Page) -> None:
    files = [
        block for guide in GUIDES.glob("*.md") for block in re.findall(r"```yaml\n(.*?)```", guide.read_text(), re.S)
    ]
    page.open(world.url("/modelworks/new"))

    reader = "import('/modelworks/static/yaml.js').then(yaml => JSON.stringify({files}.map(yaml.parseSpec)))"
    read = json.loads(page.evaluate(reader.format(files=json.dumps(files))))

    assert len(files) >= 6
    assert [plain(each) for each in read] == [plain(yaml.safe_load(each)) for each in files]

"""The live dashboard in a real browser: how soon it shows what happened, and what it lives through."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.surfaces.chromium import Page, browsing
from doors import end, insert_job, listening, report, start
from modelworks.app.services import Services
from modelworks.app.wiring import App, open_app
from modelworks.core.config import Settings
from modelworks.core.nouns import EventType, Job, JsonObject
from modelworks.core.states import JobState
from modelworks.store import jobs as queue

MOST_SECONDS_BEHIND = 2.0
SPEC: JsonObject = {
    "name": "first", "model": "org/tiny", "dataset": "<b>rows</b>", "strategy": "sft", "max_steps": 60,
    "num_train_epochs": 3,
}  # fmt: skip
# Notes when each text of the step was first on the page.
WATCH = """
window.seen = {};
const step = document.getElementById("step");
new MutationObserver(() => { window.seen[step.textContent] ??= Date.now() / 1000; })
  .observe(step, {childList: true, characterData: true, subtree: true});
"""


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    app = open_app(Settings.model_validate({"home": tmp_path / "home", "hub_offline": True}))
    yield app
    app.close()


@pytest.fixture
def page(chromium: str, tmp_path: Path) -> Iterator[Page]:
    with browsing(chromium, tmp_path / "profile") as page:
        page.call("Emulation.setDeviceMetricsOverride", width=1300, height=1100, deviceScaleFactor=1, mobile=False)
        yield page


def training(services: Services, name: str = "first") -> Job:
    return start(services, insert_job(services, "train", SPEC | {"name": name}))


def tell_step(services: Services, job: Job, step: int, loss: float = 1.0) -> None:
    facts: JsonObject = {"done": step, "total": 60, "unit": "steps", "stage": "training", "eta_seconds": 60.0 - step}
    report(services, job, [facts], EventType.PROGRESS)
    numbers: JsonObject = {"step": step, "epoch": step / 20, "loss": loss, "learning_rate": 2e-4, "grad_norm": 0.5}
    report(services, job, [numbers])


def wait_for_text(page: Page, element: str, text: str) -> None:
    page.wait_for(f"document.getElementById('{element}').textContent == '{text}'")


def test_a_step_is_on_the_page_within_two_seconds(app: App, page: Page) -> None:
    with listening(app) as url:
        job = training(app.services)
        tell_step(app.services, job, 1)
        page.open(f"{url}/modelworks/dashboard")
        wait_for_text(page, "step", "1 / 60")
        page.evaluate(WATCH)

        for step in range(2, 6):
            told_at = time.time()
            tell_step(app.services, job, step)
            wait_for_text(page, "step", f"{step} / 60")
            assert page.evaluate(f"window.seen['{step} / 60']") - told_at < MOST_SECONDS_BEHIND

        report(app.services, job, [{"message": "<img src=x onerror=alert(1)>", "level": "warning"}], EventType.LOG)
        page.wait_for("document.querySelector('#logs li[data-level=warning]')")
        assert page.evaluate("document.querySelector('#logs li span').textContent") == "<img src=x onerror=alert(1)>"
        assert page.evaluate("document.querySelectorAll('canvas').length") == 2
        assert page.evaluate("document.getElementById('epoch').textContent") == "0.25"
        end(app.services, job)
        wait_for_text(page, "status", "completed")
        assert page.said == []


def test_it_survives_a_reload_and_a_server_that_goes_and_comes_back(app: App, page: Page) -> None:
    with listening(app) as url:
        job = training(app.services)
        tell_step(app.services, job, 1)
        page.open(f"{url}/modelworks/dashboard")
        wait_for_text(page, "step", "1 / 60")
        page.open(f"{url}/modelworks/dashboard")
        wait_for_text(page, "step", "1 / 60")
        port = int(url.rsplit(":", 1)[1])

    wait_for_text(page, "connection", "reconnecting…")
    tell_step(app.services, job, 2)
    with listening(app, port):
        wait_for_text(page, "step", "2 / 60")
        wait_for_text(page, "connection", "live")
        # Each event once, though the stream was begun anew.
        assert (
            page.evaluate(
                "[...document.querySelectorAll('#logs span')].filter(x => x.textContent == 'Step 1 completed').length"
            )
            == 1
        )


def test_it_goes_on_to_the_training_that_begins_unless_one_was_chosen(app: App, page: Page) -> None:
    with listening(app) as url:
        first = training(app.services)
        page.open(f"{url}/modelworks/dashboard")
        wait_for_text(page, "name", "first")
        waiting = insert_job(app.services, "train", SPEC | {"name": "second"})
        page.wait_for("document.querySelectorAll('#picker option').length == 3")
        assert page.evaluate("document.getElementById('name').textContent") == "first"

        second = start(app.services, waiting)
        wait_for_text(page, "name", "second")

        page.open(f"{url}/modelworks/dashboard?job={first.id}")
        wait_for_text(page, "name", "first")
        end(app.services, first, JobState.CANCELLED)
        wait_for_text(page, "status", "cancelled")
        tell_step(app.services, second, 1)
        assert page.evaluate("document.getElementById('picker').value") == first.id


def test_smoothing_and_the_logarithm_are_chosen_by_hand_and_remembered(app: App, page: Page) -> None:
    with listening(app) as url:
        job = training(app.services)
        for step in range(1, 9):
            tell_step(app.services, job, step, loss=10.0 / step)
        page.open(f"{url}/modelworks/dashboard")
        wait_for_text(page, "step", "8 / 60")
        drawn = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
        picture = f"{drawn}.then(() => document.querySelector('#loss-chart canvas').toDataURL())"
        plain = page.evaluate(picture)

        page.click("#log-scale")
        assert page.evaluate(picture) != plain
        page.click("#smooth")
        assert page.evaluate("document.getElementById('weight').disabled") is True

        page.open(f"{url}/modelworks/dashboard")
        wait_for_text(page, "step", "8 / 60")
        assert page.evaluate(
            "[document.getElementById('log-scale').checked, document.getElementById('smooth').checked]"
        ) == [True, False]


def test_a_sweep_shows_its_trainings_and_then_their_table_and_picture(app: App, page: Page) -> None:
    row: JsonObject = {"name": "<b>best-1</b>", "job": "a-job", "state": "succeeded", "values": {"lora_r": 8}}
    row |= {"metrics": {"loss": 2.5}, "seconds": 3.0}
    found: JsonObject = {"name": "best", "best": "best-1", "metric": "loss", "table": [row]}
    with listening(app) as url:
        new = queue.NewJob(kind="sweep", spec=SPEC, inputs={}, needs={}, labels={queue.CHILDREN: ["a-job"]})
        sweep = start(app.services, queue.insert_job(app.services.database, new))
        report(app.services, sweep, [{"done": 0, "total": 1, "unit": "trainings"}], EventType.PROGRESS)
        page.open(f"{url}/modelworks/dashboard?job={sweep.id}")
        wait_for_text(page, "step", "0 / 1")
        assert page.evaluate("document.querySelector('#sweep-links a').search") == "?job=a-job"

        drawn = f'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9">{"<path/>" * 3}</svg>'
        ending = queue.Ending(state=JobState.SUCCEEDED, result=found | {"picture": drawn})
        assert queue.end_job(app.services.database, sweep.id, sweep.runs, ending)
        app.services.feed.tell(sweep.id)

        page.wait_for("document.querySelectorAll('#sweep-table td').length == 5")
        assert page.evaluate("document.querySelector('#sweep-table td').textContent") == "<b>best-1</b>"
        page.wait_for("document.querySelector('#sweep-picture img').naturalWidth == 9")
        assert page.said == []


@pytest.mark.parametrize(
    ("path", "shown"), [("/docs", "#swagger-ui .opblock-tag"), ("/redoc", "#redoc h1"), ("/", "#health:not(:empty)")]
)
def test_the_other_pages_show_something_without_a_network(app: App, page: Page, path: str, shown: str) -> None:
    with listening(app) as url:
        page.open(url + path)

        page.wait_for(f"document.querySelector({shown!r})")


def test_an_empty_workspace_says_how_to_begin_and_a_wrong_id_what_is_wrong(app: App, page: Page) -> None:
    with listening(app) as url:
        page.open(f"{url}/modelworks/dashboard")
        page.wait_for("!document.getElementById('empty').hidden")
        assert url in page.evaluate("document.getElementById('empty').textContent")

        page.open(f"{url}/modelworks/dashboard?job=nobody")
        page.wait_for("document.getElementById('missing-text').textContent.includes('nobody')")

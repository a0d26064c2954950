"""The whole of /openapi.json, asked at random: nothing breaks, and every answer is one that the document names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import APIOperation, Case
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from doors import end, insert_job, listening, start
from modelworks.app.wiring import open_app
from modelworks.core.config import Settings
from modelworks.data.spec import ImportSpec

# Enough that each route's names, numbers and bodies are wrong in several ways, few enough for a minute in all.
EXAMPLES = 20
SEED = 20240115
CHECKED = [status_code_conformance, content_type_conformance, response_schema_conformance]
# What a server may answer that is well: this machine or build cannot (501), not now (503), no room (507). Each has to
# be named by the route itself, and none is a bug (500).
TOLD = {501, 503, 507}


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """A server with one dataset and one job that has ended, so that its stream of events ends; no worker and no model,
    so that nothing which is asked here computes."""
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"prompt": "{n}?", "completion": "{n}!"}}\n' for n in range(20)))
    app = open_app(Settings.model_validate({"home": tmp_path / "home", "hub_offline": True}))
    app.services.catalog.upload(tmp_path / "rows.jsonl", ImportSpec(name="rows"))
    job = insert_job(app.services)
    end(app.services, start(app.services, job))
    try:
        with listening(app) as url:
            yield url
    finally:
        app.close()


def check(case: Case[Any], url: str, session: requests.Session) -> str | None:
    """What is wrong with the answer to one request."""
    response = case.call(base_url=url, session=session, timeout=20)
    named = case.operation.definition.raw["responses"]
    if response.status_code >= 500 and not (response.status_code in TOLD and str(response.status_code) in named):
        return f"{response.status_code}: {response.text[:300]}"
    try:
        case.validate_response(response, checks=CHECKED)
    except (FailureGroup, Failure) as failure:
        problems = failure.exceptions if isinstance(failure, FailureGroup) else [failure]
        return "; ".join(f"{response.status_code} {problem} {response.text[:200]}"[:700] for problem in problems)
    return None


def ask_at_random(operation: APIOperation[Any, Any, Any, Any], url: str, session: requests.Session) -> list[str]:
    """Ask one route EXAMPLES times; return what was wrong, each thing once."""
    wrong: dict[str, str] = {}

    @seed(SEED)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def ask(case: Case[Any]) -> None:
        problem = check(case, url, session)
        if problem is not None:
            wrong.setdefault(problem[:60], f"{operation.label} {case.query} {case.body!r:.200}: {problem}")

    ask()
    return list(wrong.values())


@pytest.mark.timeout(300)
def test_every_answer_of_every_route_is_one_that_the_document_names(url: str) -> None:
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    wrong: list[str] = []
    asked: set[str] = set()
    with requests.Session() as session:
        session.trust_env = False
        for found in schema.get_all_operations():
            assert isinstance(found, Ok), found
            operation = found.ok()
            asked.add(operation.path)
            wrong += ask_at_random(operation, url, session)

    # No route is left out. The one that is no HTTP, /ws/training, is not in the document.
    assert asked == set(requests.get(f"{url}/openapi.json", timeout=20).json()["paths"])
    assert not wrong, "\n\n".join(wrong)

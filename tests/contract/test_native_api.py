"""What the native API promises on the wire, route by route, without a worker and without an engine."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.routing import Route

from doors import KEY, Door, end, insert_job, open_door, report, start
from modelworks.core.nouns import EventType, JsonObject
from modelworks.core.states import JobState
from modelworks.server.limits import UPLOAD_PATHS

ROWS = b"".join(
    json.dumps({"instruction": f"Say {number}", "output": f"It is {number}"}).encode() + b"\n" for number in range(40)
)
CHANGING = {"POST", "PUT", "PATCH", "DELETE"}


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    with open_door(tmp_path) as opened:
        yield opened


def every_route(door: Door) -> list[tuple[str, str]]:
    """Method and a real address of every route there is."""
    found = []
    for path, operations in door.asgi.openapi()["paths"].items():
        found += [(method.upper(), re.sub(r"{[^}]+}", "x", path)) for method in operations]
    return found


def test_the_openapi_document_names_every_route(door: Door) -> None:
    routes = [route for route in door.asgi.routes if isinstance(route, Route)]
    served = {(method, route.path) for route in routes for method in route.methods or () if method != "HEAD"}
    documented = {
        (method.upper(), path)
        for path, ways in door.client.get("/openapi.json").json()["paths"].items()
        for method in ways
    }

    assert {(method, path.replace(":path", "")) for method, path in served} - documented == {("GET", "/openapi.json")}
    assert ("POST", "/modelworks/train") in documented


def test_the_openapi_document_points_to_nothing_that_is_not_there(door: Door) -> None:
    document = door.client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]

    referred = set(re.findall(r'"\$ref": "([^"]+)"', json.dumps(document)))

    assert {
        reference for reference in referred if reference.removeprefix("#/components/schemas/") not in schemas
    } == set()


def test_a_foreign_host_reaches_no_route(door: Door) -> None:
    found = {
        (method, path): door.client.request(method, path, headers={"Host": "evil.example"}).status_code
        for method, path in every_route(door)
    }

    assert {address: status for address, status in found.items() if status != 421} == {}


@pytest.mark.parametrize("origin", ["https://evil.example", "null"])
@pytest.mark.parametrize("body", [b"", b"{}"])
def test_a_foreign_page_changes_nothing_by_any_route(door: Door, origin: str, body: bytes) -> None:
    found = {
        (method, path): door.client.request(method, path, headers={"Origin": origin}, content=body).status_code
        for method, path in every_route(door)
        if method in CHANGING
    }

    assert len(found) >= 12
    assert {address: status for address, status in found.items() if status != 403} == {}


def test_without_the_key_no_route_answers(tmp_path: Path) -> None:
    with open_door(tmp_path, api_key=KEY) as door:
        refused = {(method, path): door.client.request(method, path) for method, path in every_route(door)}
        opened = door.client.get("/modelworks/health", headers={"Authorization": f"Bearer {KEY}"})

    assert {address: reply.status_code for address, reply in refused.items() if reply.status_code != 401} == {}
    assert all(reply.headers["www-authenticate"].startswith("Bearer") for reply in refused.values())
    assert opened.status_code == 200


def test_no_route_takes_a_body_beyond_its_limit(door: Door) -> None:
    found = {
        (method, path): door.client.request(method, path, content=bytes((16 << 20) + 1)).status_code
        for method, path in every_route(door)
        if method in CHANGING and not path.startswith(UPLOAD_PATHS)
    }

    assert {address: status for address, status in found.items() if status != 413} == {}


def test_every_answer_tells_the_browser_to_be_careful(door: Door) -> None:
    for method, path in every_route(door):
        reply = door.client.request(method, path)

        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["x-frame-options"] == "DENY"


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd", "..%2f..%2fetc", "%2e%2e/%2e%2e/etc", "/etc", "//etc", "a%00b", "~root",
        "C:%5Cwindows", "a" * 200, "con", "%ef%bc%8e%ef%bc%8e/x", "%ff%fe", "x/../../y", "..",
    ],
)  # fmt: skip
@pytest.mark.parametrize("shelf", ["models", "datasets"])
def test_no_name_leads_out_of_the_workspace_or_to_an_error_of_ours(door: Door, shelf: str, name: str) -> None:
    address = f"/modelworks/{shelf}/{name}"

    statuses = {method: door.client.request(method, address).status_code for method in ("GET", "DELETE")}
    if shelf == "datasets":
        statuses["PUT"] = door.client.put(address, content=ROWS, params={"filename": "rows.jsonl"}).status_code

    assert {method: status for method, status in statuses.items() if status not in {400, 403, 404, 405}} == {}


def test_a_job_is_accepted_found_listed_and_cancelled(door: Door) -> None:
    reply = door.client.post("/modelworks/pull?priority=3", json={"source": "smollm2-135m", "name": "base"})
    job = reply.json()

    assert reply.status_code == 202
    assert reply.headers["location"] == f"/modelworks/jobs/{job['id']}"
    assert (job["kind"], job["state"], job["priority"], job["spec"]["name"]) == ("pull", "queued", 3, "base")
    shown = door.client.get(reply.headers["location"]).json()
    assert shown == job | {"progress": None}
    assert [item["id"] for item in door.client.get("/modelworks/jobs?state=queued").json()["items"]] == [job["id"]]
    assert door.client.get("/modelworks/jobs?state=failed&state=running").json()["items"] == []
    cancelled = door.client.post(f"/modelworks/jobs/{job['id']}/cancel").json()
    assert (cancelled["state"], cancelled["id"]) == ("cancelled", job["id"])


def test_jobs_come_in_pages(door: Door) -> None:
    made = [insert_job(door.services).id for _ in range(5)]

    first = door.client.get("/modelworks/jobs?limit=3").json()
    second = door.client.get(f"/modelworks/jobs?limit=3&before={first['next']}").json()

    assert [item["id"] for item in first["items"] + second["items"]] == made[::-1]
    assert second["next"] is None


def test_the_same_idempotency_key_gives_the_same_job(door: Door) -> None:
    body = {"source": "smollm2-135m", "name": "base"}
    headers = {"Idempotency-Key": "once"}

    first = door.client.post("/modelworks/pull", json=body, headers=headers).json()
    again = door.client.post("/modelworks/pull", json=body, headers=headers).json()
    other = door.client.post("/modelworks/pull", json=body | {"name": "other"}, headers=headers)

    assert again["id"] == first["id"]
    assert other.status_code == 409


@pytest.mark.parametrize(
    ("address", "body", "status", "said"),
    [
        ("/modelworks/pull", {"sorce": "smollm2-135m"}, 400, "sorce"),
        ("/modelworks/pull", [], 400, "dictionary"),
        ("/modelworks/pull?priority=1000", {"source": "smollm2-135m"}, 400, "priority"),
        ("/modelworks/train", {"model": "nope", "dataset": "nothing"}, 404, "nope"),
        ("/modelworks/models", {"path": "/etc", "name": "x"}, 403, "--allow-path"),
        ("/modelworks/models", {"name": "x"}, 400, "path"),
        ("/modelworks/jobs/nope/cancel", None, 404, "nope"),
        ("/modelworks/jobs/nope/retry", None, 404, "nope"),
        ("/modelworks/models/nope/alias", {"alias": "x"}, 404, "nope"),
        ("/modelworks/datasets", {}, 400, "multipart"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_problem_document(
    door: Door, address: str, body: JsonObject | None, status: int, said: str
) -> None:
    reply = door.client.post(address, json=body)

    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    assert said in reply.text


def test_a_misspelt_key_is_answered_with_the_nearest_known_one(door: Door) -> None:
    reply = door.client.post("/modelworks/pull", json={"sorce": "smollm2-135m"}).json()

    assert {problem["where"]: problem["remedy"] for problem in reply["problems"]}["sorce"].startswith(
        "did you mean source"
    )


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/octet-stream"])
def test_a_spec_in_another_content_type_is_refused(door: Door, kind: str) -> None:
    reply = door.client.post("/modelworks/pull", content=b'{"source": "smollm2-135m"}', headers={"Content-Type": kind})

    assert reply.status_code == 400


def test_events_come_in_pages_by_number(door: Door) -> None:
    job = start(door.services, insert_job(door.services))
    report(door.services, job, [{"step": number} for number in range(5)])

    first = door.client.get(f"/modelworks/jobs/{job.id}/events?limit=4").json()
    rest = door.client.get(f"/modelworks/jobs/{job.id}/events?after={first['next']}").json()
    none = door.client.get(f"/modelworks/jobs/{job.id}/events?after={rest['next']}").json()

    assert [event["seq"] for event in first["items"] + rest["items"]] == [1, 2, 3, 4, 5, 6, 7]
    assert [event["type"] for event in first["items"]] == ["state", "state", "metric", "metric"]
    assert none == {"items": [], "next": 7}


@pytest.mark.parametrize(
    ("query", "headers", "expected"),
    [
        ("", {}, [1, 2, 3, 4, 5]),
        ("?after=3", {}, [4, 5]),
        ("?after=1", {"Last-Event-ID": "4"}, [5]),
        ("?after=5", {}, []),
    ],
)
def test_a_finished_jobs_stream_replays_and_ends(
    door: Door, query: str, headers: dict[str, str], expected: list[int]
) -> None:
    job = start(door.services, insert_job(door.services))
    report(door.services, job, [{"step": 1, "text": "two\nlines"}, {"step": 2}])
    end(door.services, job)

    reply = door.client.get(
        f"/modelworks/jobs/{job.id}/events{query}", headers={"Accept": "text/event-stream"} | headers
    )

    assert reply.headers["content-type"].startswith("text/event-stream")
    assert [int(number) for number in re.findall(r"^id: (\d+)$", reply.text, re.MULTILINE)] == expected
    for block in reply.text.split("\n\n")[:-1]:
        lines = dict(line.split(": ", 1) for line in block.split("\n"))
        body = json.loads(lines["data"])
        assert (str(body["seq"]), body["type"]) == (lines["id"], lines["event"])


def test_a_job_shows_its_latest_progress_and_its_log(door: Door) -> None:
    job = start(door.services, insert_job(door.services))
    report(door.services, job, [{"done": 1}, {"done": 2}], EventType.PROGRESS)
    door.services.folder(job.id).path.mkdir(parents=True)
    door.services.folder(job.id).stdout.write_text("first\nlast\n")

    assert door.client.get(f"/modelworks/jobs/{job.id}").json()["progress"]["body"] == {"done": 2}
    assert door.client.get(f"/modelworks/jobs/{job.id}/log").text == "first\nlast"


def test_cancelling_a_job_that_ended_answers_with_the_state_that_won(door: Door) -> None:
    job = start(door.services, insert_job(door.services))
    end(door.services, job)

    reply = door.client.post(f"/modelworks/jobs/{job.id}/cancel")

    assert (reply.status_code, reply.json()["state"]) == (200, JobState.SUCCEEDED)


def test_a_form_with_a_file_becomes_a_dataset(door: Door) -> None:
    reply = door.client.post(
        "/modelworks/datasets",
        files={"file": ("../../numbers.jsonl", ROWS)},
        data={"validation_share": "0.25", "seed": "7", "name": ""},
    )

    body = reply.json()
    assert reply.status_code == 201, reply.text
    assert body["dataset"]["name"] == "numbers"
    assert body["dataset"]["train_rows"] + body["dataset"]["validation_rows"] == 40
    assert [item["name"] for item in door.client.get("/modelworks/datasets").json()] == ["numbers"]
    assert list((door.services.settings.home / "staging").iterdir()) == []


def test_a_whole_body_becomes_a_dataset_that_can_be_seen_and_removed(door: Door) -> None:
    csv = b"question,answer\n" + b"".join(b"What is %d?,It is %d.\n" % (number, number) for number in range(20))
    params: dict[str, str | float] = {
        "filename": "faq.csv",
        "columns": '{"prompt": "question", "completion": "answer"}',
        "validation_share": 0.5,
    }

    made = door.client.put(
        "/modelworks/datasets/ACME/faq", content=csv, params=params | {"format": "prompt_completion"}
    )

    assert made.status_code == 201, made.text
    assert door.client.get("/modelworks/datasets/ACME/faq").json() == made.json()["dataset"]
    assert "What is" in door.client.get("/modelworks/datasets/ACME/faq/preview").text
    assert door.client.put("/modelworks/datasets/ACME/faq", content=csv, params=params).status_code == 409
    assert door.client.delete("/modelworks/datasets/ACME/faq").json()["name"] == "ACME/faq"
    assert door.client.get("/modelworks/datasets/ACME/faq").status_code == 404


def test_rows_can_be_looked_at_before_they_are_kept(door: Door) -> None:
    from tiny import tiny_llama

    door.services.catalog.add_model(tiny_llama(door.services.settings.home / "tiny"), "tiny")
    form = {"model": "tiny", "max_length": "40", "on_bad_rows": "skip"}
    files = {"file": ("a.txt", '{"prompt": "hi", "completion": "ho"}\n{"prompt": 1}\n'.encode("utf-16"))}

    looked = door.client.post("/modelworks/datasets", files=files, data=form | {"dry_run": "true"}).json()

    assert looked["dataset"] is None
    assert door.client.get("/modelworks/datasets").json() == []
    kept = door.client.post("/modelworks/datasets", files=files, data=form).json()
    assert kept["dataset"]["notes"] == kept["report"]["notes"] == looked["report"]["notes"]
    assert kept["preview"] == looked["preview"]
    assert (kept["preview"]["truncated_rows"], kept["preview"]["masked_rows"]) == (0, 0)
    address = "/modelworks/datasets/a/preview?model=tiny&max_length=20"
    assert door.client.get(address).json()["masked_rows"] == 1


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data; boundary=x", b"no form at all"),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n',
        ),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="seed"\r\n\r\n1\r\n--x--\r\n',
        ),
        ("multipart/form-data", b"--x"),
        ("application/json", b"{}"),
        ("", b""),
    ],
)
def test_a_form_that_cannot_be_read_is_refused_and_leaves_nothing(door: Door, content_type: str, body: bytes) -> None:
    reply = door.client.post("/modelworks/datasets", content=body, headers={"Content-Type": content_type})

    assert reply.status_code == 400
    assert list((door.services.settings.home / "staging").iterdir()) == []


def test_a_form_field_that_is_no_file_stays_small(door: Door) -> None:
    reply = door.client.post("/modelworks/datasets", files={"file": ("a.jsonl", ROWS)}, data={"name": "x" * (70 << 10)})

    assert reply.status_code == 413


def test_a_large_upload_does_not_lie_in_memory_and_a_full_disk_is_said(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelworks.store.files.LEAST_FREE_BYTES", 1 << 60)

    reply = door.client.put("/modelworks/datasets/x", content=ROWS, params={"filename": "rows.jsonl"})

    assert reply.status_code == 507
    assert "free" in reply.json()["detail"]


def test_health_and_doctor_answer(door: Door) -> None:
    health = door.client.get("/modelworks/health").json()
    checks = {check["name"]: check for check in door.client.get("/modelworks/doctor").json()}

    assert health["status"] == "ok"
    assert checks["python"]["ok"]
    assert checks["hub"]["found"].startswith("not asked")
    assert {"sqlite", "disk", "memory", "workspace", "port", "torch", "demo model"} <= set(checks)


def test_a_file_of_a_model_can_be_looked_at_but_nothing_else_of_the_machine(tmp_path: Path) -> None:
    from tiny import tiny_llama

    folder = tiny_llama(tmp_path / "tiny")
    (folder / "merge_report.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    with open_door(tmp_path / "home", allow_paths=[str(tmp_path)]) as door:
        door.services.catalog.add_model(folder, "me/tiny")

        picture = door.client.get("/modelworks/models/me/tiny/files/merge_report.svg")
        weights = door.client.get("/modelworks/models/me/tiny/files/model.safetensors")
        outside = door.client.get("/modelworks/models/me/tiny/files/..%2Fmodelworks.db")

    assert picture.headers["content-type"] == "image/svg+xml"
    assert "sandbox" in picture.headers["content-security-policy"]
    assert weights.headers["content-disposition"].startswith("attachment")
    assert weights.content == (folder / "model.safetensors").read_bytes()
    assert outside.status_code == 404

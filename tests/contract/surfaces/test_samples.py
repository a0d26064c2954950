"""The documents' samples: bodies are sent as printed, answers have the printed keys and types, files are there.

The tests follow a day of the server, in the order of the file: what one trains, the next one shows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

from contract.surfaces.blocks import blocks, document
from contract.surfaces.ledger import FILES, REQUEST_LINES, REQUESTS, RESPONSES, taken
from contract.surfaces.shapes import differences, sample
from contract.surfaces.world import DATASET_PATH, MERGING, ROWS_TEXT, SAMPLE_JOB, Sources, World, serving
from modelworks.serve.entries import read_entries


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, sources: Sources, dataset_path: Path) -> Iterator[World]:
    home = tmp_path_factory.mktemp("samples") / "home"
    sources.fill(home, None, None)
    with serving(home, "--allow-path", str(dataset_path.parent)) as world:
        world.ended(SAMPLE_JOB)
        yield world


def body(id_: str) -> bytes:
    """A block as it is printed, to be sent as it is."""
    return blocks()[id_].text.encode()


JSON = {"Content-Type": "application/json"}


def start_training(world: World, dataset_path: Path, **more: object) -> dict[str, Any]:
    """S1-03, with the path of the dataset as the fixture says; as printed unless `more` is asked for."""
    world.settle()
    text = body("S1-03").replace(str(DATASET_PATH).encode(), str(dataset_path).encode())
    text = json.dumps(json.loads(text) | more).encode() if more else text
    reply = world.post("/api/start_training", content=text, headers=JSON)
    assert reply.status_code == 200, reply.text
    started: dict[str, Any] = reply.json()
    return started


def test_every_sample_is_looked_at_here() -> None:
    text = Path(__file__).read_text()
    wanted = [block.id for block in taken((*REQUESTS, *REQUEST_LINES, *RESPONSES, *FILES))]

    assert [id_ for id_ in wanted if f'"{id_}"' not in text] == []


@pytest.mark.parametrize(
    ("id_", "path", "port"),
    [("S0-04", "/api/health", MERGING), ("S1-01", "/api/info", 8000), ("S1-02", "/api/health", 8000)],
)
def test_facts_of_the_server(world: World, id_: str, path: str, port: int) -> None:
    answer = world.get(path, port).json()

    assert differences(sample(id_), answer) == []
    assert answer["version"] == sample(id_)["version"]


def test_s0_a_method(world: World) -> None:
    methods = world.get("/api/methods", MERGING).json()["methods"]
    shown = {"methods": [method for method in methods if method["name"] == "task_arithmetic"]}

    assert differences(sample("S0-06"), shown) == []
    assert shown["methods"][0]["parameters"]["scaling_coefficient"]["default"] == 0.3


def test_s0_a_merge(world: World) -> None:
    reply = world.post("/api/merge", MERGING, content=body("S0-07"), headers=JSON)

    answer = reply.json()
    assert (reply.status_code, differences(sample("S0-09"), answer)) == (202, [])
    assert (answer["status"], answer["message"]) == ("pending", "Merging job started")
    assert world.ended(answer["job_id"])["state"] == "succeeded"
    shown = world.get(answer["check_status"], MERGING).json()
    assert shown["output_path"] == f"./merged_output/{answer['job_id']}"
    assert (world.home / shown["output_path"] / "model.safetensors").is_file()


def test_s0_a_job(world: World) -> None:
    answer = world.get(f"/api/jobs/{SAMPLE_JOB}", MERGING).json()

    assert differences(sample("S0-11"), answer) == []
    # Times as printed: milliseconds and Z.
    for key in ("created_at", "started_at", "completed_at"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", answer[key]), answer[key]


def test_s1_a_training_that_is_stopped(world: World, dataset_path: Path) -> None:
    with connect("ws://localhost:8000/ws/training", proxy=None) as socket:
        # Longer than printed, so that it still goes on when it is stopped.
        started = start_training(world, dataset_path, num_train_epochs=1000)
        while not isinstance((frame := json.loads(socket.recv(120))).get("loss"), float):
            pass
    status = world.get("/api/training_status").json()
    stopped = world.post("/api/stop_training").json()

    assert differences(sample("S1-04"), started) == []
    assert differences(sample("S1-05"), frame) == []
    assert differences(sample("S1-05"), status) == []
    assert differences(sample("S1-06"), stopped) == []
    assert (started["status"], frame["status"], stopped["status"]) == ("started", "training", "stopped")


def test_s1_a_training_and_its_model(world: World, dataset_path: Path) -> None:
    started = start_training(world, dataset_path)
    assert world.ended(started["job_id"])["state"] == "succeeded"

    listed = world.get("/api/models").json()
    trained = listed["models"][-1]
    shown = world.get(f"/api/models/{trained['id']}").json()
    # As printed it asks model 1, which nobody trained here; then the one that was.
    nobody = world.post("/api/playground/generate", content=body("S1-12"), headers=JSON)
    answer = world.post("/api/playground/generate", json=sample("S1-12") | {"model_id": trained["id"]})
    deleted = world.delete(f"/api/models/{trained['id']}").json()

    assert differences(sample("S1-07"), {"models": [trained]}) == []
    assert differences(sample("S1-08"), shown) == []
    assert (nobody.status_code, differences(sample("S1-14"), nobody.json())) == (404, [])
    assert (answer.status_code, differences(sample("S1-13"), answer.json())) == (200, [])
    assert differences(sample("S1-09"), deleted) == []
    assert shown["training_params"]["num_epochs"] == 3
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", shown["created_at"])


def test_s1_datasets(world: World) -> None:
    uploaded = world.post("/api/upload_dataset", files={"file": ("dataset.jsonl", ROWS_TEXT.encode())}).json()
    listed = world.get("/api/datasets").json()

    assert differences(sample("S1-10"), uploaded) == []
    assert differences(sample("S1-11"), listed) == []
    assert (uploaded["filename"], uploaded["num_examples"]) == ("dataset.jsonl", 24)


def test_s1_an_error(world: World) -> None:
    reply = world.get("/api/models/999999")

    assert (reply.status_code, differences(sample("S1-14"), reply.json())) == (404, [])
    assert reply.json()["status_code"] == 404


def send(world: World, id_: str, job: str = "", **options: Any) -> Any:
    """What a printed request line is answered with."""
    method, path = blocks()[id_].text.split()
    reply = world.http.request(method, world.url(path.replace("{job_id}", job)), **options)
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_s2_a_training_by_the_printed_lines(world: World) -> None:
    started = send(world, "S2-03", content=body("S2-04"), headers=JSON)
    job = started["job_id"]
    world.ended(job)
    status, jobs, logs = send(world, "S2-06", job), send(world, "S2-08"), send(world, "S2-09", job)
    dashboard = send(world, "S2-11")

    assert differences(sample("S2-05"), started) == []
    assert differences(sample("S2-07"), status) == []
    assert (status["status"], status["progress"]["step"]) == ("completed", 60)
    assert job in {found["id"] for found in jobs["jobs"]}
    assert len(logs["logs"]) >= 60
    assert dashboard["dashboard_url"] == "http://localhost:5000"


def test_s2_the_files_of_a_training(world: World) -> None:
    assert "training_logs.jsonl" in blocks()["S2-14"].text
    lines = [json.loads(line) for line in (world.home / "training_logs.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["type"] == "training_step"]

    assert len(steps) >= 60
    assert [found for line in steps for found in differences(sample("S2-15"), line)] == []
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?", steps[0]["timestamp"])
    assert list((world.home / "results").glob("*/adapter_model.safetensors"))
    assert (world.home / "lora_model" / "adapter_model.safetensors").is_file()


def test_s2_a_training_that_is_cancelled(world: World) -> None:
    # After the files were looked at: the log in the workspace is that of the training that began last.
    job = send(world, "S2-03", content=body("S2-04"), headers=JSON)["job_id"]
    cancelled = send(world, "S2-10", job)

    assert (cancelled["job_id"], cancelled["status"]) == (job, "cancelled")


def test_s4_from_loading_to_unloading(world: World) -> None:
    world.settle()
    before = world.get("/slm/info", MERGING).json()
    loaded = world.post("/slm/load", MERGING).json()
    answer = world.post("/slm/generate", MERGING, content=body("S4-06"), headers=JSON).json()
    after = world.get("/slm/info", MERGING).json()
    unloaded = world.post("/slm/unload", MERGING).json()

    assert (differences(sample("S4-04"), before), before["model_loaded"], after["model_loaded"]) == ([], False, True)
    assert differences(sample("S4-05"), loaded) == []
    assert differences(sample("S4-07"), answer) == []
    assert answer["full_response"].startswith("### Instruction:\nExplain what machine learning is\n\n### Response:\n")
    assert answer["settings"] == sample("S4-07")["settings"]
    assert differences(sample("S4-10"), unloaded) == []


def test_s4_a_stream(world: World) -> None:
    shown = [json.loads(line[6:]) for line in blocks()["S4-09"].text.splitlines() if line]
    reply = world.post("/slm/stream", MERGING, content=body("S4-08"), headers=JSON)

    assert reply.headers["content-type"].startswith("text/event-stream")
    assert re.fullmatch(r"(data: .*\n\n)+", reply.text)
    events = [json.loads(line[6:]) for line in reply.text.splitlines() if line]
    pieces = events[3:-1]
    # The documents' machine has a GPU; the words around it are the same.
    said = [re.sub("on (cpu|cuda)", "on cuda", event["status"]) for event in (*events[:3], events[-1])]
    assert said == [event["status"] for event in (*shown[:3], shown[-1])]
    assert events[-1].keys() == shown[-1].keys()
    assert pieces
    assert [found for piece in pieces for found in differences(shown[3], piece)] == []
    assert "".join(piece["text"] for piece in pieces).strip() == pieces[-1]["full_text"]


def test_s3_every_row_of_the_documents_table_answers(world: World) -> None:
    rows = re.findall(r"^\| (/api/v1/\S*) +\| `(.*?)` *\|", document("S3"), re.MULTILINE)
    # As printed but for what says that a key may be left out, or that more may follow.
    bodies = {path: json.loads(text.replace(" (Optional)", "").replace(", ...]", "]")) for path, text in rows}
    assert len(bodies) == 5

    for path in ("/api/v1/model_name/activate", "/api/v1/model_name/call", "/api/v1/"):
        reply = world.post(path, 9999, json=bodies[path])

        assert (reply.status_code, reply.json()["status"]) == (200, 0), reply.text
    # Its device is a GPU; here it may be another.
    added = world.post("/api/v1/model_name/add", 9999, json={"device": "cpu"})
    removed = [world.post("/api/v1/model_name/remove", 9999, json=bodies["/api/v1/model_name/remove"]) for _ in "12"]
    assert [reply.json()["status"] for reply in (added, *removed)] == [0, 0, 0]


def test_s3_the_documents_config_can_be_read(tmp_path: Path) -> None:
    # A comment stands where the value of `params` should be; the value goes behind it.
    printed = blocks()["S3-02"].text
    (tmp_path / "config.json").write_text(re.sub(r"(// a list or .*\n)", r"\1[]\n", printed))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").touch()

    entry = read_entries(tmp_path, 8)["internal_model_name"]

    assert (entry.class_name, entry.params, entry.batch_size) == ("ImplementedModelEntryName", [], 8)

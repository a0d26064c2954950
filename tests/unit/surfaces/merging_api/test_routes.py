"""The Model Merging API: what each of its addresses answers, and one merge from the request to the file."""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from starlette.testclient import TestClient

import merging_eval_reference as reference
from doors import insert_job
from modelworks.app.services import Services
from modelworks.app.wiring import App, open_app
from modelworks.core.config import Settings
from modelworks.core.ids import new_id
from modelworks.core.nouns import JsonObject
from modelworks.core.states import JobState
from modelworks.merge.method import methods
from modelworks.server.asgi import create_asgi

URL = "http://127.0.0.1:5000"
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
DOCUMENTED = ["average_merging", "task_arithmetic", "ties_merging", "ties_merging_dare", "mask_merging"]


@dataclass(frozen=True)
class Door:
    app: App
    client: TestClient
    folders: list[Path]

    @property
    def services(self) -> Services:
        return self.app.services

    def get(self, path: str, status: int = 200) -> Any:
        answer = self.client.get(path)
        assert answer.status_code == status, answer.text
        return answer.json()

    def merge(self, status: int = 202, **changes: object) -> Any:
        body = {"base_model": "Qwen/base", "models_to_merge": ["one"], "merge_method": "ties_merging", **changes}
        return self.post({key: value for key, value in body.items() if value != "-"}, status)

    def post(self, body: object, status: int) -> Any:
        content = body if isinstance(body, bytes) else json.dumps(body)
        answer = self.client.post("/api/merge", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == status, answer.text
        return answer.json()


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    root = tmp_path_factory.mktemp("merging")
    folders = reference.family(root / "models")
    settings = Settings(home=root / "home", hub_offline=True, allow_paths=(root / "models",), slots={"cpu": 1})
    app = open_app(settings)
    app.services.catalog.add_model(folders[0], "Qwen/base")
    app.services.catalog.add_model(folders[1], "one")
    yield Door(app, TestClient(create_asgi(app), base_url=URL, raise_server_exceptions=False), folders)
    app.close()


def test_the_documents_methods_come_first_with_their_parameters(door: Door) -> None:
    methods = {method["name"]: method for method in door.get("/api/methods")["methods"]}

    assert list(methods)[:5] == DOCUMENTED
    assert {"average", "task_arithmetic_float32"} <= methods.keys()
    assert "task_arithmetic_bf16" not in methods
    assert methods["task_arithmetic"] == {
        "name": "task_arithmetic",
        "description": "Task vector arithmetic merging",
        "parameters": {
            "scaling_coefficient": {
                "type": "float",
                "default": 0.3,
                "request_default": 1.0,
                "description": "lambda: factor on the sum of task vectors",
            }
        },
    }
    shown = methods["mask_merging"]["parameters"]
    assert {name: (each["type"], each["default"]) for name, each in shown.items()} == {
        "weight_mask_rates": ("array", [0.5, 0.5]),
        "mask_strategy": ("string", "magnitude"),
        "use_weight_rescale": ("boolean", True),
        "mask_apply_method": ("string", "average_merging"),
        "seed": ("integer", 42),
        "scaling_coefficient": ("float", 0.3),
        "param_value_mask_rate": ("float", 0.8),
    }
    assert all(each["description"] for method in methods.values() for each in method["parameters"].values())


def test_the_example_is_the_documents_request(door: Door) -> None:
    assert door.get("/api/example") == {
        "base_model": "Qwen/Qwen2.5-0.5B",
        "models_to_merge": ["InfiX-ai/Qwen-base-0.5B-code", "InfiX-ai/Qwen-base-0.5B-algebra"],
        "merge_method": "task_arithmetic",
        "output_dir": "./merged_output",
        "scaling_coefficient": 0.3,
        "use_gpu": True,
        "param_value_mask_rate": 0.8,
        "exclude_param_names_regex": [],
    }


def test_what_is_queued_is_told_with_every_default_and_without_the_token(door: Door) -> None:
    queued = door.merge(models_to_merge=["one", str(door.folders[2])], hf_token="hf_secret")
    job_id = queued.pop("job_id")
    warnings = queued.pop("warnings")

    assert queued == {
        "status": "pending",
        "message": "Merging job started",
        "check_status": f"/api/jobs/{job_id}",
    }
    assert [warning.split(":")[0] for warning in warnings] == ["hf_token"]
    job = door.get(f"/api/jobs/{job_id}")
    assert TIME.fullmatch(job.pop("created_at"))
    assert job == {
        "job_id": job_id,
        "status": "pending",
        "started_at": None,
        "completed_at": None,
        "error_message": None,
        "output_path": None,
        "progress": 0.0,
        "warnings": warnings,
        "params": {
            "base_model": "Qwen/base",
            "models_to_merge": ["one", str(door.folders[2])],
            "merge_method": "ties_merging",
            "output_dir": "./api/output",
            "scaling_coefficient": 1.0,
            "use_gpu": False,
            "param_value_mask_rate": 0.8,
            "weight_mask_rates": [0.5, 0.5],
            "exclude_param_names_regex": [],
            "mask_strategy": "magnitude",
            "mask_apply_method": "average_merging",
            "use_weight_rescale": True,
            "seed": 42,
            "use_hf_auth": False,
            "local_files_only": False,
        },
    }
    assert "hf_secret" not in str(door.services.job(job_id)) + str(door.services.events(job_id))
    assert door.services.job(job_id).spec["params"] == {"param_value_mask_rate": 0.8, "scaling_coefficient": 1.0}


def test_what_is_not_done_is_told_in_the_answer_and_in_the_log(door: Door) -> None:
    queued = door.merge(merge_method="task_arithmetic", use_gpu=True, param_value_mask_rate=0.5, scalling=2, seed=None)

    assert queued["warnings"] == [
        "scalling: not known, ignored",
        "param_value_mask_rate: task_arithmetic has no such parameter, ignored",
        "use_gpu: there is no GPU here, so the merge runs on the CPU; the result is the same",
    ]
    log = [event.body for event in door.services.events(queued["job_id"]) if event.type == "log"]
    assert log == [{"message": warning, "level": "warning"} for warning in queued["warnings"]]
    spec = door.services.job(queued["job_id"]).spec
    assert (spec["method"], spec["device"]) == ("task_arithmetic_bf16", "cpu")
    assert door.get(f"/api/jobs/{queued['job_id']}")["params"]["use_gpu"] is True


def test_a_gpu_is_taken_where_there_is_one(tmp_path: Path, door: Door) -> None:
    app = open_app(Settings(home=tmp_path, hub_offline=True, allow_paths=(door.folders[0].parent,), slots={"gpu": 1}))
    client = TestClient(create_asgi(app), base_url=URL)
    models = {"base_model": str(door.folders[0]), "models_to_merge": [str(door.folders[1])]}

    answer = client.post("/api/merge", json=models | {"merge_method": "average", "use_gpu": True}).json()

    job = app.services.job(answer["job_id"])
    app.close()
    assert answer["warnings"] == []
    assert (job.spec["device"], job.needs) == ("auto", {"gpu": 1})


def test_every_method_takes_a_request_that_names_nothing_else(door: Door) -> None:
    ours = {"task_arithmetic": "task_arithmetic_bf16", "task_arithmetic_float32": "task_arithmetic"}
    one = str(door.folders[1])
    for told in door.get("/api/methods")["methods"]:
        method = methods()[ours.get(told["name"], told["name"])]
        # Those of adapters have no use for full models, or must be told a rank.
        if not (method.adapters_only or method.gives_adapter):
            queued = door.merge(merge_method=told["name"], models_to_merge=[one] * method.models[0])
            assert queued["warnings"] == [], told["name"]


def test_further_parameters_weights_and_dtype_reach_the_method(door: Door) -> None:
    queued = door.merge(merge_method="task_arithmetic_float32", params={"scaling_coefficient": 0.2}, weights=[0.5],
                        dtype="float32")  # fmt: skip

    spec = door.services.job(queued["job_id"]).spec
    assert (spec["method"], spec["weights"], spec["dtype"]) == ("task_arithmetic", [0.5], "float32")
    assert spec["params"] == {"scaling_coefficient": 0.2}


def test_a_whole_number_is_as_good_as_a_fraction(door: Door) -> None:
    queued = door.merge(merge_method="ties_merging_dare", scaling_coefficient=1)

    assert door.get(queued["check_status"])["params"]["scaling_coefficient"] == 1.0


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"base_model": "-", "models_to_merge": "-", "merge_method": "-"}, "Missing required parameter: base_model"),
        ({"base_model": None, "merge_method": "-"}, "Missing required parameter: base_model"),
        ({"models_to_merge": "-", "merge_method": "-"}, "Missing required parameter: models_to_merge"),
        ({"merge_method": "-"}, "Missing required parameter: merge_method"),
    ],
)
def test_the_first_missing_parameter_is_named(door: Door, changes: JsonObject, error: str) -> None:
    assert door.merge(400, **changes) == {"error": error, "detail": error, "status_code": 400, "message": error}


@pytest.mark.parametrize(
    ("changes", "status", "error"),
    [
        ({"merge_method": "ties_mergin"}, 400, "merge_method: none is called 'ties_mergin'; did you mean ties_merging"),
        ({"models_to_merge": []}, 400, "models_to_merge: List should have at least 1 item"),
        ({"models_to_merge": "one"}, 400, "models_to_merge: Input should be a valid list, found 'one'"),
        ({"exclude_param_names_regex": "lm_head"}, 400, "exclude_param_names_regex: Input should be a valid list"),
        (
            {"exclude_param_names_regex": ["embed"]},
            400,
            "these cannot be merged: exclude_param_names_regex: 'embed' ma",
        ),
        ({"scaling_coefficient": "much"}, 400, "scaling_coefficient: Input should be a valid number"),
        (
            {"param_value_mask_rate": 2},
            400,
            "these cannot be merged: params.param_value_mask_rate: Input should be les",
        ),
        (
            {"merge_method": "mask_merging", "weight_mask_rates": [0.5, 0.5]},
            400,
            "these cannot be merged: params.weight_mask_rates: 2 rates for 1 models",
        ),
        ({"weights": [1.0]}, 400, "these cannot be merged: weights: ties_merging takes none"),
        ({"params": {"density": 1}}, 400, "these cannot be merged: params.density: unknown key"),
        ({"models_to_merge": ["two"]}, 404, "no model is called 'two'"),
        ({"base_model": "/etc"}, 403, "/etc is outside the allowed folders"),
        ({"output_dir": "/etc"}, 403, "/etc is outside the allowed folders"),
        ({"output_dir": "models"}, 403, "output_dir 'models' belongs to the workspace itself"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_any_work(
    door: Door, changes: JsonObject, status: int, error: str
) -> None:
    before = len(door.get("/api/jobs")["jobs"])

    body = door.merge(status, **changes)

    assert body["error"].startswith(error), body
    assert (body["status_code"], body["message"]) == (status, body["error"])
    assert len(door.get("/api/jobs")["jobs"]) == before


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff"])
def test_a_body_that_is_no_object_is_refused(door: Door, content: bytes) -> None:
    assert door.post(content, 400)["error"].startswith("the body is not")


def test_a_body_over_16_mib_is_too_large_and_one_below_is_not(door: Door) -> None:
    assert door.post(b" " * ((16 << 20) + 1), 413)["error"] == "File too large"
    assert door.post(b"{}" + b" " * (15 << 20), 400)["error"] == "Missing required parameter: base_model"


@pytest.mark.parametrize("path", ["/api/jobs/{}", "/api/download/{}"])
def test_a_job_that_is_not_there_or_is_no_merge_is_not_found(door: Door, path: str) -> None:
    pull = insert_job(door.services, "pull")

    for job_id in ("nonsense", new_id(), pull.id):
        assert door.get(path.format(job_id), 404)["error"] == "Job not found"


def test_a_cancelled_job_has_failed_and_a_paused_one_is_pending(door: Door) -> None:
    cancelled, paused = door.merge()["job_id"], door.merge()["job_id"]
    door.services.cancel(cancelled)
    door.services.pause(paused)

    job = door.get(f"/api/jobs/{cancelled}")
    assert (job["status"], job["error_message"]) == ("failed", "cancelled")
    assert TIME.fullmatch(job["completed_at"])
    assert door.get(f"/api/jobs/{paused}")["status"] == "pending"
    for job_id in (cancelled, paused):
        assert door.get(f"/api/download/{job_id}", 400)["error"] == "Job not completed"


def test_a_merge_that_came_through_another_door_is_told_in_their_words(door: Door) -> None:
    spec = {"method": "task_arithmetic", "base": "Qwen/base", "models": ["one"], "params": {"scaling_coefficient": 2}}
    job = door.services.submit("merge", spec)

    told = door.get(f"/api/jobs/{job.id}")

    assert told["params"] == {
        "base_model": "Qwen/base",
        "models_to_merge": ["one"],
        "merge_method": "task_arithmetic_float32",
        "use_gpu": False,
        "exclude_param_names_regex": [],
        "scaling_coefficient": 2,
    }
    assert told["warnings"] == []
    assert door.get("/api/jobs")["jobs"][0] == told


def test_a_merge_ends_to_end_and_its_model_can_be_taken_away(door: Door) -> None:
    models = ["one", str(door.folders[2]), str(door.folders[3])]
    for other in door.services.jobs(states=(JobState.QUEUED, JobState.PAUSED), limit=1000):
        door.services.cancel(other.id)
    queued = door.merge(models_to_merge=models, param_value_mask_rate=0.55, scaling_coefficient=0.3,
                        output_dir="./merged_output/")  # fmt: skip
    job_id = queued["job_id"]

    door.app.start_worker()
    door.services.wait(job_id, 120)

    job = door.get(f"/api/jobs/{job_id}")
    assert (job["status"], job["error_message"], job["progress"]) == ("completed", None, 100.0)
    assert job["output_path"] == f"./merged_output/{job_id}"
    assert all(TIME.fullmatch(job[key]) for key in ("created_at", "started_at", "completed_at"))
    placed = door.services.settings.home / job["output_path"]
    base, *experts = map(reference.load, door.folders)
    expected = reference.merge("ties_merging", base, experts, param_value_mask_rate=0.55, scaling_coefficient=0.3)
    assert reference.digest(reference.load(placed)) == reference.digest(expected)

    told = door.get(f"/api/download/{job_id}")
    url = f"/api/download/{job_id}?archive=1"
    sent = door.client.get(url)
    assert told == {
        "job_id": job_id,
        "output_path": job["output_path"],
        "message": f"Merged model available at {job['output_path']}; fetch it as a tar from {url}",
        "archive_url": url,
        "size_bytes": len(sent.content),
    }
    assert sent.headers["content-disposition"] == 'attachment; filename="base-ties_merging.tar"'
    assert sent.headers["content-type"] == "application/x-tar"
    with tarfile.open(fileobj=io.BytesIO(sent.content), mode="r:") as archive:
        unpacked = {Path(member.name).name: archive.extractfile(member) for member in archive}
        read = {name: file.read() for name, file in unpacked.items() if file is not None}
    assert read == {path.name: path.read_bytes() for path in placed.iterdir()}

    made = next(model.name for model in door.services.servable() if model.job_id == job_id)
    door.services.remove("models", made)
    assert "was removed" in door.get(url, 404)["error"]


def test_a_merge_that_fails_says_why(door: Door) -> None:
    broken = shutil.copytree(door.folders[1], door.folders[1].parent / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][5] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    job_id = door.merge(models_to_merge=[str(broken)], merge_method="average_merging")["job_id"]

    door.app.start_worker()
    door.services.wait(job_id, 120)

    job = door.get(f"/api/jobs/{job_id}")
    assert (job["status"], job["output_path"]) == ("failed", None)
    assert job["error_message"].startswith(f"{broken}: model.norm.weight is nan at element 5")

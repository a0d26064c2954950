"""Every client of the documents, as printed, against a running server with real models."""

from __future__ import annotations

import json
import re
import subprocess
from ast import literal_eval
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.surfaces.blocks import blocks
from contract.surfaces.clients import IMPORT_TIME, Client
from contract.surfaces.world import DATASET_PATH, MERGING, SAMPLE_JOB, Sources, World, clean_environment, serving

pytestmark = pytest.mark.model
# What a small model answers at a temperature is its own affair; that it is a sentence is ours.
WORDS = r"[A-Za-z]+ [a-z]+"
UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory, sources: Sources, smollm2: Path, slm_adapter: Path, dataset_path: Path
) -> Iterator[World]:
    home = tmp_path_factory.mktemp("clients") / "home"
    sources.fill(home, smollm2, slm_adapter)
    # The newest adapter may be one that a test trained; the document's is this one.
    own = {"MODELWORKS_SLM_ADAPTER": "cuda_lora_out"}
    with serving(home, "--allow-path", str(dataset_path.parent), environment=own) as world:
        world.ended(SAMPLE_JOB)
        yield world
        world.settle()


@pytest.fixture
def client(tmp_path: Path, node: list[str]) -> Client:
    return Client(tmp_path, node)


def text_of(id_: str) -> str:
    return blocks()[id_].text


def forge_text(id_: str, dataset_path: Path) -> str:
    """As printed, wherever /path/to may be made."""
    return text_of(id_).replace(str(DATASET_PATH), str(dataset_path))


def test_s0_health_by_curl(world: World, client: Client) -> None:
    (health,) = client.curl(text_of("S0-03"))

    assert (health["status"], health["version"], health["merging_available"]) == ("healthy", "1.0.0", True)


def test_s0_methods_by_curl(world: World, client: Client) -> None:
    (answer,) = client.curl(text_of("S0-05"))

    named = {method["name"] for method in answer["methods"]}
    assert {"average_merging", "task_arithmetic", "ties_merging", "ties_merging_dare", "mask_merging"} <= named


def test_s0_a_merge_by_curl(world: World, client: Client) -> None:
    (answer,) = client.curl(text_of("S0-08"))

    assert (answer["status"], answer["check_status"]) == ("pending", f"/api/jobs/{answer['job_id']}")
    assert world.ended(answer["job_id"])["state"] == "succeeded"


def test_s0_a_jobs_state_by_curl(world: World, client: Client) -> None:
    (answer,) = client.curl(text_of("S0-10"))

    assert (answer["job_id"], answer["status"]) == (SAMPLE_JOB, "completed")
    assert answer["output_path"] == f"./api/output/{SAMPLE_JOB}"


def test_s0_all_jobs_by_curl(world: World, client: Client) -> None:
    (answer,) = client.curl(text_of("S0-12"))

    assert SAMPLE_JOB in {job["job_id"] for job in answer["jobs"]}


def test_s0_a_download_by_curl(world: World, client: Client) -> None:
    (answer,) = client.curl(text_of("S0-13"))

    assert (answer["job_id"], answer["output_path"]) == (SAMPLE_JOB, f"./api/output/{SAMPLE_JOB}")
    assert (world.home / answer["output_path"] / "model.safetensors").is_file()


def test_s0_an_example_by_curl_can_be_sent(world: World, client: Client) -> None:
    (example,) = client.curl(text_of("S0-14"))

    assert {"base_model", "models_to_merge", "merge_method"} <= set(example)
    assert world.post("/api/merge", MERGING, json=example).status_code == 202


def test_s0_a_merge_by_python_requests(world: World, client: Client) -> None:
    said = client.python(IMPORT_TIME + text_of("S0-15"))

    (job,) = re.findall(f"^Started job: ({UUID})$", said, re.MULTILINE)
    assert f"Job completed! Output: ./api/output/{job}" in said


def test_s0_a_merge_by_javascript_fetch(world: World, client: Client) -> None:
    # The text only defines the two functions; its reader calls them.
    call = "startMerge().then(checkJobStatus).then(job => console.log(JSON.stringify(job)));"
    started, job = client.javascript(text_of("S0-16") + call).splitlines()

    assert re.fullmatch(f"Started job: {UUID}", started)
    assert started.endswith(json.loads(job)["job_id"])
    assert json.loads(job)["status"] in {"pending", "running", "completed"}


def test_s1_a_training_by_python_requests_is_followed_by_websocket(
    world: World, client: Client, node: list[str], tmp_path: Path, dataset_path: Path
) -> None:
    world.settle()
    script = tmp_path / "follow.js"
    script.write_text(text_of("S1-15"))
    # It listens for ever, so the test ends it.
    with subprocess.Popen([*node, script], env=clean_environment(), stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        said = client.python(forge_text("S1-16", dataset_path))
        heard = following.stdout.readline()
        while "training" not in heard:
            heard += following.stdout.readline()
        following.kill()

    started, status = [literal_eval(line) for line in said.splitlines()]
    assert started["status"] == "started"
    assert re.fullmatch(r"train_\d{6}", started["job_id"])
    assert status["status"] in {"queued", "training"}
    assert heard.startswith("Training progress: {")
    assert world.ended(started["job_id"])["state"] == "succeeded"


def test_s2_a_training_by_curl(world: World, client: Client) -> None:
    text = text_of("S2-12")

    # As printed, curl asks for the job called `job_id`, which is nobody's.
    started, missing, listed = client.curl(text)
    (_, shown, _) = client.curl(text.replace("{job_id}", started["job_id"]))

    assert (started["status"], started["dashboard_url"]) == ("queued", "http://localhost:5000")
    assert missing["detail"] == "Job not found"
    assert started["job_id"] in {job["id"] for job in listed["jobs"]}
    assert (shown["job_id"], shown["error"]) == (started["job_id"], None)
    assert world.ended(started["job_id"])["state"] == "succeeded"


def test_s2_a_training_by_python_requests(world: World, client: Client) -> None:
    job = literal_eval(client.python(text_of("S2-13")))

    assert job["status"] in {"queued", "running"}
    assert world.delete(f"/jobs/{job['job_id']}").json()["status"] == "cancelled"


def test_s4_an_answer_by_python_requests(world: World, client: Client) -> None:
    loaded, response = client.python(text_of("S4-11")).split("\n", 1)

    assert literal_eval(loaded)["success"] is True
    assert re.search(WORDS, response)


def test_s4_an_answer_by_axios(world: World, client: Client) -> None:
    said = client.javascript(text_of("S4-12"))

    assert re.search(r"success: true,\n +message: 'Model loaded successfully on (cpu|cuda)'", said)
    assert len(said.split("}\n", 1)[1].split()) > 5


def test_s4_the_curl_examples(world: World, client: Client) -> None:
    loaded, answer, info = client.curl(text_of("S4-13"))

    assert (loaded["success"], answer["success"], info["model_loaded"]) == (True, True, True)
    assert answer["settings"]["max_new_tokens"] == 80
    assert answer["full_response"].endswith(answer["response"])
    assert info["base_model"] == "gpt2"


def test_s4_a_batch_that_goes_on_where_the_python_client_ended(world: World, client: Client) -> None:
    # The batch has no import of its own: it belongs behind the page's first Python client.
    said = client.python(text_of("S4-11") + text_of("S4-18"))

    assert len(re.findall(r"^Q: .+\nA: .+", said, re.MULTILINE)) == 3


def test_s4_the_discord_bot_answers_the_one_who_asks(world: World, client: Client) -> None:
    sent, answer = client.bot(text_of("S4-16")).split(" ", 1)

    assert sent == "1"
    assert re.search(WORDS, answer)

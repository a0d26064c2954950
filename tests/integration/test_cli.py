"""The life of a model through the installed command, on a model of a few kilobytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tiny import tiny_llama

COMMAND = Path(sys.executable).parent / "modelworks"
SMALL = ("--model", "tiny", "--dataset", "rows", "--max-length", "64", "--lora-r", "2")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def environment(home: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MODELWORKS_")}
    return {**kept, "MODELWORKS_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}


def modelworks(home: Path, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *arguments], capture_output=True, text=True, env=environment(home), input=stdin or "", timeout=300
    )


def done(home: Path, *arguments: str) -> str:
    """What a command that must succeed printed."""
    ran = modelworks(home, *arguments)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def object_of(home: Path, *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done(home, *arguments, "--json"))
    return found


@pytest.fixture(scope="module")
def stocked(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a base model and a dataset."""
    folder = tmp_path_factory.mktemp("inputs")
    tiny_llama(folder / "tiny", seed=1, dtype="float32")
    rows = [{"question": f"what is {n}?", "answer": f"it is {n}"} for n in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done(home, "models", "add", str(folder / "tiny"), "--name", "tiny")
    columns = ("--columns", "instruction=question,output=answer")
    uploaded = object_of(home, "upload", str(folder / "rows.jsonl"), "--name", "rows", *columns)
    assert uploaded["dataset"]["train_rows"] + uploaded["dataset"]["validation_rows"] == 40
    return home


@pytest.fixture(scope="module")
def merged(stocked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which an expert was trained and merged into its base."""
    spec = tmp_path_factory.mktemp("specs") / "train.yaml"
    spec.write_text("model: tiny\ndataset: rows\nmax_steps: 50\nmax_length: 64\nlora_r: 2\n")
    job = object_of(stocked, "train", str(spec), "--name", "mine/expert", "--max-steps", "2")
    # the option goes over the file
    assert (job["state"], job["spec"]["max_steps"], job["spec"]["lora_r"]) == ("succeeded", 2, 2)
    weights = ("--param", "scaling_coefficient=0.5")
    done(
        stocked,
        "merge",
        "--method",
        "task_arithmetic",
        "--base",
        "tiny",
        "--models",
        "mine/expert",
        "--name",
        "mine/merged",
        *weights,
    )
    return stocked


def test_lineage_goes_back_to_what_was_brought_in(merged: Path) -> None:
    tree = object_of(merged, "models", "show", "mine/merged", "--lineage")
    drawn = done(merged, "models", "show", "mine/merged", "--lineage")

    roles = {parent["role"]: parent for parent in tree["parents"]}
    expert = next(parent for parent in tree["parents"] if parent["name"] == "mine/expert")
    assert roles["base"]["name"] == "tiny"
    assert {parent["name"] for parent in expert["parents"]} == {"tiny", "rows"}
    assert all(name in drawn for name in ("mine/merged", "mine/expert", "tiny", "rows", "scaling_coefficient=0.5"))


def test_show_names_the_folder(merged: Path) -> None:
    shown = object_of(merged, "models", "show", "mine/merged")

    assert (Path(shown["path"]) / "model.safetensors").is_file()


def test_an_evaluation_is_one_table(merged: Path) -> None:
    arguments = ("--models", "tiny", "mine/merged", "--datasets", "rows", "--metrics", "perplexity", "--limit", "2")
    printed = done(merged, "eval", *arguments, "--idempotency-key", "one")
    again = object_of(merged, "eval", *arguments, "--idempotency-key", "one")

    lines = printed.splitlines()
    assert "perplexity" in printed
    assert [line.split()[0] for line in lines[-2:]] == ["tiny", "mine/merged"]
    assert len(again["result"]["rows"]) == 2


def test_a_name_that_is_taken_is_exit_code_5(merged: Path) -> None:
    ran = modelworks(merged, "train", *SMALL, "--name", "mine/expert")

    assert ran.returncode == 5
    assert ran.stdout == ""
    assert "Traceback" not in ran.stderr


def test_lists_are_a_line_of_json_each(merged: Path) -> None:
    names = {json.loads(line)["name"] for line in done(merged, "models", "ls", "--json").splitlines()}
    states = {json.loads(line)["state"] for line in done(merged, "jobs", "ls", "--json").splitlines()}

    assert names == {"tiny", "mine/expert", "mine/merged"}
    assert states == {"succeeded"}


def test_the_story_of_a_job_has_no_gap(merged: Path) -> None:
    newest = json.loads(done(merged, "jobs", "ls", "--kind", "train", "--json").splitlines()[0])

    story = [json.loads(line) for line in done(merged, "jobs", "events", newest["id"], "--json").splitlines()]

    assert [event["seq"] for event in story] == list(range(1, len(story) + 1))
    assert story[-1]["body"]["state"] == "succeeded"


def test_a_queued_job_can_be_cancelled_and_tried_again(stocked: Path) -> None:
    queued = done(stocked, "train", *SMALL, "--max-steps", "1", "--no-wait", "-q").strip()

    cancelled = object_of(stocked, "jobs", "cancel", queued)
    retried = modelworks(stocked, "jobs", "retry", queued, "--no-wait", "-q")

    assert cancelled["state"] == "cancelled"
    assert retried.returncode == 0
    assert object_of(stocked, "jobs", "cancel", retried.stdout.strip())["state"] == "cancelled"


def test_a_name_nobody_here_knows_is_asked_of_the_hub(stocked: Path) -> None:
    # Nothing listens at this address: the hub that is asked is the one the user named, and it does not answer.
    reachable = environment(stocked) | {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
    asked = ("train", "--model", "acme/far-away", "--dataset", "rows", "--max-length", "64")

    ran = subprocess.run([COMMAND, *asked], capture_output=True, text=True, env=reachable, timeout=300)

    assert "acme/far-away is not here; fetching it from the hub first" in ran.stderr
    assert "http://127.0.0.1:9" in ran.stderr or "hub" in ran.stderr.splitlines()[-1]
    assert ran.returncode == 1
    assert modelworks(stocked, *asked).returncode == 4


def test_ctrl_c_leaves_the_job_running(stocked: Path) -> None:
    waiting = subprocess.Popen(
        [COMMAND, "train", *SMALL, "--max-steps", "100000", "--follow", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(stocked),
        # A shell starts what runs in its background with SIGINT ignored, and that is inherited: undo it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert waiting.stdout is not None
    events = (json.loads(line) for line in waiting.stdout)
    job_id = next(event["job_id"] for event in events if event["type"] == "metric")

    waiting.send_signal(signal.SIGINT)
    _, told = waiting.communicate(timeout=60)

    assert waiting.returncode == 130
    assert f"modelworks jobs cancel {job_id}" in told
    assert object_of(stocked, "jobs", "show", job_id)["state"] == "running"
    assert object_of(stocked, "jobs", "cancel", job_id)["state"] == "cancelled"
    assert "Traceback" not in told


def test_a_prompt_on_stdin_is_answered(stocked: Path) -> None:
    rows = '{"prompt": "one", "id": 1}\n{"prompt": "two", "id": 2}\n'

    ran = modelworks(stocked, "generate", "tiny", "--file", "-", "--max-tokens", "4", stdin=rows)

    answers = [json.loads(line) for line in ran.stdout.splitlines()]
    assert ran.returncode == 0, ran.stderr
    assert [answer["id"] for answer in answers] == [1, 2]
    assert all(answer["usage"]["completion_tokens"] <= 4 for answer in answers)


def test_a_server_of_the_workspace_answers_chat(stocked: Path) -> None:
    server = subprocess.Popen(
        [COMMAND, "serve", "--port", "0", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment(stocked),
    )  # fmt: skip
    try:
        assert server.stdout is not None
        url = json.loads(server.stdout.readline())["url"]
        asked = ("chat", "tiny", "hello", "--max-tokens", "4", "--json")
        through_the_workspace = modelworks(stocked, *asked)
        through_its_address = modelworks(stocked, *asked, "--server", url)
        second = modelworks(stocked, "serve", "--port", "0")
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=30)

    assert through_the_workspace.returncode == 0, through_the_workspace.stderr
    assert "loading" not in through_the_workspace.stderr
    assert through_its_address.returncode == 0, through_its_address.stderr
    assert second.returncode == 3

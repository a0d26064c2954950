"""A search on models of a few kilobytes: it improves, goes on after a kill, and tells where the winner is from."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fakes import FakeJob
from modelworks.core.errors import Cancelled
from modelworks.core.nouns import AnyArtifact, Draft, Model
from modelworks.evaluate.run import run as evaluate
from modelworks.evaluate.spec import EvaluateSpec
from modelworks.merge.run import run as merge
from modelworks.merge.spec import MergeSpec
from modelworks.search.run import run
from modelworks.search.spec import SearchSpec
from modelworks.weights.loading import load_network
from shelf import conversations, model_at, published
from tiny import tiny_adapter, tiny_llama

ROWS = [(f"say {word} {number}", f"{word} " * number) for word in ("yes", "no", "so") for number in range(1, 6)]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> dict[str, AnyArtifact]:
    """A base, an expert that went too far, so that a part of its way is better than all of it, and one of noise."""
    root = tmp_path_factory.mktemp("shelf")
    base = model_at(tiny_llama(root / "base", dtype="float32"), "base")
    tensors = load_file(base.path / "model.safetensors")
    learnt = _descend(base.path, 12)
    found: dict[str, AnyArtifact] = {"base": base, "rows": conversations(root / "rows", [], ROWS)}
    for name, pushed, noise in (("good", 3.0, 0.0), ("bad", 0.0, 0.1)):
        folder = tiny_llama(root / name, dtype="float32")
        generator = torch.Generator().manual_seed(7)
        moved = {
            key: value + pushed * (learnt[key] - value) + noise * torch.randn(value.shape, generator=generator)
            for key, value in tensors.items()
        }
        save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})
        found[name] = model_at(folder, name)
    return found


def _descend(folder: Path, steps: int) -> dict[str, torch.Tensor]:
    """The weights after a few steps towards the rows."""
    from transformers import AutoTokenizer

    network = load_network(folder, torch.float32, "cpu")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(steps):
        for _ask, say in ROWS:
            ids = torch.tensor([tokenizer(say).input_ids])
            network(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: value.detach().clone() for name, value in network.named_parameters()}


def spec(**changes: Any) -> SearchSpec:
    settings: dict[str, Any] = {
        "recipe": MergeSpec(base="base", models=("good", "bad"), device="cpu"), "datasets": ("rows",), "trials": 12,
        "dtype": "fp32", "name": "best",
    }  # fmt: skip
    return SearchSpec.model_validate(settings | changes)


def measured(model: Model, shelf: Mapping[str, AnyArtifact], folder: Path) -> float:
    job = FakeJob(folder, {"it": model, "rows": shelf["rows"]})
    asked = EvaluateSpec(models=("it",), datasets=("rows",), metrics=("perplexity",), device="cpu", dtype="fp32")
    result: Any = evaluate(asked, job)
    return float(result["rows"][0]["perplexity"])


def model_of(draft: Draft) -> Model:
    made = published(draft)
    assert isinstance(made, Model)
    return made


def trials_of(result: Mapping[str, Any]) -> list[tuple[int, Any, Any]]:
    """What was tried, without how long it took."""
    return sorted((row["trial"], row["point"], row["goals"]) for row in result["leaderboard"])


def test_the_winner_beats_the_recipe_also_on_rows_it_was_not_chosen_on(
    tmp_path: Path, shelf: dict[str, AnyArtifact]
) -> None:
    job = FakeJob(tmp_path, dict(shelf))

    result: Any = run(spec(), job)

    for told in ("chosen_on", "held_out"):
        assert result[told]["winner"]["perplexity"] < 0.97 * result[told]["recipe"]["perplexity"]
    assert result["best_point"]["weights.0"] < 0.95
    assert len(result["leaderboard"]) == 13
    assert [metric["step"] for metric in job.metrics] == list(range(13))
    assert {unit for _, _, unit in job.progressed} == {"trials", "measurements", "bytes"}


def test_what_is_published_is_the_winner_with_all_that_it_came_from(
    tmp_path: Path, shelf: dict[str, AnyArtifact]
) -> None:
    job = FakeJob(tmp_path, dict(shelf))

    result: Any = run(spec(trials=4, recipe=MergeSpec(base="base", models=("good",), device="cpu")), job)

    (draft,) = job.drafts
    assert draft.name == result["name"] == "best"
    assert [(parent.role, parent.name) for parent in draft.parents] == [
        ("base", "base"), ("expert", "good"), ("evaluation", "rows"),
    ]  # fmt: skip
    beside = json.loads((draft.folder / "search.json").read_text())
    assert beside["leaderboard"] == result["leaderboard"]
    assert (draft.folder / "search.svg").read_text() == result["picture"]
    assert draft.metrics["perplexity"] == result["chosen_on"]["winner"]["perplexity"]
    # Measured in memory, and from the files: on both halves together it lies between the two.
    halves = sorted(result[told]["winner"]["perplexity"] for told in ("chosen_on", "held_out"))
    assert halves[0] * 0.9999 <= measured(model_of(draft), shelf, tmp_path / "again") <= halves[1] * 1.0001
    # The recipe in its lineage is a plain merge that makes the same bytes again.
    again = FakeJob(tmp_path / "plain", dict(shelf))
    merge(MergeSpec.model_validate(draft.recipe["spec"]), again)
    assert (again.drafts[0].folder / "model.safetensors").read_bytes() == (
        draft.folder / "model.safetensors"
    ).read_bytes()


class _Dying(FakeJob):
    """A job whose process dies as soon as a number of trials has been told."""

    def metric(self, step: int, **values: float) -> None:
        super().metric(step, **values)
        if step == 5:
            raise KeyboardInterrupt


def test_a_search_that_died_goes_on_behind_its_last_trial_and_ends_as_if_it_had_not(
    tmp_path: Path, shelf: dict[str, AnyArtifact]
) -> None:
    whole: Any = run(spec(trials=8), FakeJob(tmp_path / "whole", dict(shelf)))
    with pytest.raises(KeyboardInterrupt):
        run(spec(trials=8), _Dying(tmp_path / "broken", dict(shelf)))
    with (tmp_path / "broken" / "checkpoints" / "trials.jsonl").open("a") as file:
        file.write('{"number": 6, "poi')
    job = FakeJob(tmp_path / "broken", dict(shelf))

    result: Any = run(spec(trials=8), job)

    assert [metric["step"] for metric in job.metrics] == [6, 7, 8]
    assert trials_of(result) == trials_of(whole)


def test_cancelling_gets_out_between_two_pieces(tmp_path: Path, shelf: dict[str, AnyArtifact]) -> None:
    job = FakeJob(tmp_path, dict(shelf), cancel_after=10)

    with pytest.raises(Cancelled):
        run(spec(), job)

    assert job.drafts == []


def test_several_goals_give_a_front_and_a_winner_that_loses_in_none(
    tmp_path: Path, shelf: dict[str, AnyArtifact]
) -> None:
    other = conversations(tmp_path / "other", [], [(f"what is {number}", "never mind") for number in range(6)])
    job = FakeJob(tmp_path / "job", shelf | {"other": other})

    result: Any = run(spec(datasets=("rows", "other"), each_dataset=True, limit=3), job)

    recipe, winner = result["chosen_on"]["recipe"], result["chosen_on"]["winner"]
    assert recipe.keys() == {"perplexity on rows", "perplexity on other"}
    assert all(winner[goal] <= recipe[goal] for goal in recipe)
    assert any(row["on_front"] for row in result["leaderboard"])
    assert result["leaderboard"][0]["on_front"]


def test_layers_that_are_stacked_anew_are_searched_too(tmp_path: Path, shelf: dict[str, AnyArtifact]) -> None:
    sources = [{"model": "good", "layer_range": [0, 2]}], [{"model": "good", "layer_range": [1, 2]}]
    recipe = {
        "base": "base", "models": ["good"], "device": "cpu",
        "slices": [{"sources": list(each), "params": {"weight": 1.0}} for each in sources],
    }  # fmt: skip
    job = FakeJob(tmp_path, dict(shelf))

    result: Any = run(spec(recipe=recipe, trials=2, space={"slices.1.params.weight": (0.1, 0.9)}), job)

    assert model_of(job.drafts[0]).path.joinpath("config.json").read_text().count('"num_hidden_layers": 3') == 1
    assert len(result["leaderboard"]) == 3


def test_adapters_are_searched_on_their_base(tmp_path: Path, shelf: dict[str, AnyArtifact]) -> None:
    from shelf import adapter_at

    base = shelf["base"]
    assert isinstance(base, Model)
    adapter = adapter_at(tiny_adapter(tmp_path / "adapter", base.path), base)
    job = FakeJob(tmp_path / "job", shelf | {"adapter": adapter, base.id: base})

    result: Any = run(spec(recipe=MergeSpec(base="base", models=("adapter",), device="cpu"), trials=3), job)

    assert result["held_out"].keys() == {"recipe", "winner"}
    assert [parent.name for parent in job.drafts[0].parents] == ["base", "adapter", "rows"]


def test_a_real_job_whose_runner_is_killed_ends_with_every_trial_once(tmp_path: Path) -> None:
    home = {**{key: value for key, value in os.environ.items() if not key.startswith("MODELWORKS_")},
            "MODELWORKS_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}  # fmt: skip
    command = str(Path(sys.executable).parent / "modelworks")
    for seed, name in enumerate(("base", "one")):
        folder = tiny_llama(tmp_path / name, seed=seed)
        subprocess.run([command, "models", "add", str(folder), "--name", name], check=True, env=home)
    rows = [{"question": f"what is {n}?", "answer": f"it is {n}"} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    upload = ("upload", str(tmp_path / "rows.jsonl"), "--columns", "instruction=question,output=answer")
    subprocess.run([command, *upload, "--validation-share", "0.5"], check=True, env=home)
    (tmp_path / "recipe.yaml").write_text("base: base\nmodels: [one]\n")
    asked = ("merge", "search", str(tmp_path / "recipe.yaml"), "--dataset", "rows", "--metric", "perplexity",
             "--trials", "60", "--space", "weights=0:1.5", "--name", "best", "--follow", "--json")  # fmt: skip

    with subprocess.Popen([command, *asked], stdout=subprocess.PIPE, text=True, env=home) as running:
        assert running.stdout is not None
        events = []
        for line in running.stdout:
            events.append(json.loads(line))
            if events[-1].get("type") == "metric" and events[-1]["body"]["step"] == 3:
                (process,) = (tmp_path / "home" / "jobs").glob("*/process.json")
                os.kill(json.loads(process.read_text())["pid"], signal.SIGKILL)

    *story, job = events
    told = [event["body"] for event in story]
    assert job["state"] == "succeeded"
    assert job["runs"] == 2
    assert any(str(body.get("message")).startswith("going on behind trial") for body in told)
    assert sorted(row["trial"] for row in job["result"]["leaderboard"]) == list(range(61))
    steps = [body["step"] for body in told if "step" in body]
    assert steps == sorted(set(steps))

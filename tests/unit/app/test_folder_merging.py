from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

import mergekit_recipes
from artifacts import as_model
from modelworks.app.folder_merging import FolderMerge, merge_folders, plan_folders
from modelworks.core.config import Settings
from modelworks.core.errors import Cancelled, Conflict, Invalid, NotFound
from modelworks.core.nouns import JsonObject
from modelworks.merge.estimate import estimate
from modelworks.merge.plan import make_plan
from modelworks.merge.spec import MergeSpec
from tiny import tiny_adapter, tiny_llama

# What mergekit_recipes.py prints.
RECORDED = {
    "linear": (808.2406055441324, 5.776838181298523),
    "linear of a base": (1817.6769266573392, 13.067051861415893),
    "slerp": (810.503479742838, 6.050708600365271),
    "nuslerp": (809.6929918681562, 5.946980030852287),
    "task_arithmetic": (808.3652361385612, 5.853661140747489),
    "ties": (811.0291260285776, 5.538305064999844),
    "ties not normalized": (809.6199596612896, 5.888594086874006),
    "breadcrumbs": (808.9873446876481, 5.898924941235953),
    "model_stock": (807.3144345262672, 5.561954667386799),
    "sce": (809.8484051857604, 5.602651325718963),
    "passthrough": (967.0335953279355, 6.28485532959042),
    "slices": (994.822689791341, 2.361950852801973),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models")
    mergekit_recipes.write_models(made)
    return made


def merged(body: dict[str, Any], out: Path, home: Path, *, overwrite: bool = False) -> JsonObject:
    planned = plan_folders(body, Settings(home=home))
    return merge_folders(planned, out, lambda _: None, lambda: False, workers=2, overwrite=overwrite)


@pytest.mark.parametrize("name", RECORDED)
def test_mergekits_file_gives_mergekits_tensors(name: str, folder: Path, tmp_path: Path) -> None:
    merged(yaml.safe_load(mergekit_recipes.recipe(name, folder)), tmp_path / "out", tmp_path)

    assert mergekit_recipes.summed(tmp_path / "out") == pytest.approx(RECORDED[name], rel=1e-7, abs=1e-5)
    assert not (tmp_path / "modelworks.db").exists()


@pytest.mark.parametrize(("method", "loads_torch"), [("ties", False), ("dare_ties", False), ("della", True)])
def test_torch_is_loaded_only_where_it_computes(method: str, loads_torch: bool, folder: Path, tmp_path: Path) -> None:
    models = [{"model": str(folder / name), "parameters": {"weight": 1}} for name in ("e1", "e2")]
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(yaml.safe_dump({"merge_method": method, "base_model": str(folder / "base"), "models": models}))
    code = "import sys; from modelworks.cli.main import run_command; "
    code += "sys.exit(run_command(sys.argv[1:]) or 'torch' in sys.modules)"

    done = subprocess.run(
        [sys.executable, "-c", code, "merge", str(recipe), "--out", str(tmp_path / "out")], check=False
    )

    assert done.returncode == loads_torch
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_stacked_layers_load_and_the_config_follows(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    config = json.loads((folder / "e1" / "config.json").read_text())
    kinds = ["full_attention", "sliding_attention"]
    (folder / "e1" / "config.json").write_text(json.dumps(config | {"layer_types": [*kinds, *kinds]}))
    merged(yaml.safe_load(mergekit_recipes.recipe("passthrough", folder)), tmp_path / "out", tmp_path)
    (folder / "e1" / "config.json").write_text(json.dumps(config))
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    stacked = load_file(tmp_path / "out" / "model.safetensors")
    first, second = (load_file(folder / name / "model.safetensors") for name in ("e1", "e2"))

    assert network.config.num_hidden_layers == 6
    # Layers 0, 1, 2 of the first, and 1, 2, 3 of the second.
    assert json.loads((tmp_path / "out" / "config.json").read_text())["layer_types"] == [
        *kinds,
        *kinds[:1],
        *kinds[::-1],
        kinds[1],
    ]
    assert stacked["model.layers.3.mlp.up_proj.weight"].equal(second["model.layers.1.mlp.up_proj.weight"])
    assert stacked["model.embed_tokens.weight"].equal(first["model.embed_tokens.weight"])
    assert stacked["lm_head.weight"].equal(second["lm_head.weight"])


def test_a_place_that_is_taken_is_left_alone(folder: Path, tmp_path: Path) -> None:
    body = {"method": "average", "models": [str(folder / "e1"), str(folder / "e2")]}
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "note").write_text("mine")
    merged(body, tmp_path / "out", tmp_path)

    with pytest.raises(Conflict, match="--overwrite"):
        merged(body, tmp_path / "out", tmp_path)
    with pytest.raises(Conflict, match="no model's folder"):
        merged(body, tmp_path / "papers", tmp_path, overwrite=True)
    merged(body | {"models": [str(folder / "e3")]}, tmp_path / "out", tmp_path, overwrite=True)

    assert (tmp_path / "papers" / "note").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "papers"]
    kept = load_file(tmp_path / "out" / "model.safetensors")["lm_head.weight"]
    assert kept.equal(load_file(folder / "e3" / "model.safetensors")["lm_head.weight"])


def test_the_report_of_an_earlier_merge_is_not_taken_over(folder: Path, tmp_path: Path) -> None:
    reports = {"merge_report.json", "merge_report.svg", "search.json"}
    merged({"base": str(folder / "base"), "models": [str(folder / "e1")]}, tmp_path / "one", tmp_path)
    (tmp_path / "one" / "search.json").write_text("{}")
    first = {path.name for path in (tmp_path / "one").iterdir()}
    merged({"method": "average", "models": [str(tmp_path / "one")]}, tmp_path / "two", tmp_path)

    assert {path.name for path in (tmp_path / "two").iterdir()} == first - reports
    assert first >= reports


def test_every_file_is_on_the_disk_before_the_result_appears(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = set()

    def sync(handle: int) -> None:
        synced.add(Path(f"/proc/self/fd/{handle}").readlink().name)

    monkeypatch.setattr(os, "fsync", sync)
    merged({"method": "average", "models": [str(folder / "e1")]}, tmp_path / "out", tmp_path)

    assert {path.name for path in (tmp_path / "out").iterdir()} | {"out.partial", tmp_path.name} <= synced


@pytest.mark.parametrize("out", ["e1", "e1/below", "."])
def test_a_result_never_lands_in_what_is_merged(out: str, folder: Path, tmp_path: Path) -> None:
    body = {"method": "average", "models": [str(folder / "e1"), str(folder / "e2")]}

    with pytest.raises(Invalid, match="lies in") as refused:
        merged(body, folder / out, tmp_path, overwrite=True)

    # Each folder is told of once.
    assert len(refused.value.problems) == (2 if out == "." else 1)
    assert sorted(path.name for path in folder.iterdir()) == ["base", "e1", "e2", "e3"]


def test_a_workspace_behind_a_link_is_not_overwritten_either(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    plan = make_plan(MergeSpec(method="average", models=("e1",)), {"e1": as_model(tmp_path / "link" / "e1", "e1")})
    planned = FolderMerge(MergeSpec(models=("e1",)), plan, estimate(plan, 1, "cpu"))

    with pytest.raises(Invalid, match="lies in e1"):
        merge_folders(planned, folder / "e1", lambda _: None, lambda: False, workers=1, overwrite=True)


def test_a_merge_that_is_stopped_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    planned = plan_folders({"method": "average", "models": [str(folder / "e1")]}, Settings(home=tmp_path))

    with pytest.raises(Cancelled):
        merge_folders(planned, tmp_path / "out", lambda _: None, lambda: True, workers=1, overwrite=False)

    assert list(tmp_path.iterdir()) == []


def test_every_name_that_means_nothing_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFound) as refused:
        plan_folders(
            {"method": "average", "models": ["nobody/none", str(tmp_path / "x")]}, Settings(home=tmp_path / "w")
        )

    assert [problem.where for problem in refused.value.problems] == ["nobody/none", str(tmp_path / "x")]
    assert not (tmp_path / "w").exists()


def test_an_adapters_folder_is_laid_upon_a_models_folder(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    tiny_adapter(tmp_path / "lora", base)
    other = tiny_llama(tmp_path / "other", seed=1)
    body = {"method": "average", "models": [f"{other}+{tmp_path / 'lora'}"]}

    doubtful = plan_folders(body, Settings(home=tmp_path))
    sound = plan_folders(body | {"base": str(base), "models": [str(tmp_path / "lora")]}, Settings(home=tmp_path))

    assert "trained on" in doubtful.estimate.notes[0]
    assert "other" in doubtful.estimate.notes[0]
    assert sound.estimate.notes == ()


def test_a_snapshot_in_the_hubs_cache_is_found_by_its_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "models--org--name"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("abc\n")
    (cache / "snapshots").mkdir()
    (cache / "snapshots" / "abc").symlink_to(folder / "e1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    for name in ("org/name", "org/name@abc"):
        planned = plan_folders({"method": "average", "models": [name]}, Settings(home=tmp_path / "w"))

        assert planned.plan.frame.path == folder / "e1"
        assert planned.plan.frame.name == name


def test_a_merge_that_was_killed_goes_on_where_it_was(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelworks.merge.folder.SECONDS_BETWEEN_SYNCS", 0.0)
    planned = plan_folders({"method": "average", "models": [str(folder / "e1")]}, Settings(home=tmp_path))
    told: list[Any] = []

    def dies_half_way(facts: JsonObject) -> None:
        told.append(facts["done"])
        if len(told) == 20:
            raise KeyboardInterrupt  # as little is done about it as about a kill

    with pytest.raises(KeyboardInterrupt):
        merge_folders(planned, tmp_path / "out", dies_half_way, lambda: False, workers=1, overwrite=False)
    left, half = [path.name for path in tmp_path.iterdir()], told[-2]
    told.clear()
    merge_folders(
        planned, tmp_path / "out", lambda facts: told.append(facts["done"]), lambda: False, workers=1, overwrite=False
    )

    assert left == ["out.partial"]
    assert told[0] > half
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert load_file(tmp_path / "out" / "model.safetensors")["lm_head.weight"].equal(
        load_file(folder / "e1" / "model.safetensors")["lm_head.weight"]
    )


@pytest.mark.parametrize("dies_at", ["sync_tree", "end_journal"])
def test_a_merge_killed_while_it_appears_loses_neither_the_old_nor_the_new(
    dies_at: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modelworks.app import folder_merging

    def die(_folder: Path) -> None:
        raise KeyboardInterrupt

    body = {"method": "average", "models": [str(folder / "e1"), str(folder / "e2")]}
    merged(body, tmp_path / "out", tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(folder_merging, dies_at, die)
        with pytest.raises(KeyboardInterrupt):
            merged(body | {"models": [str(folder / "e3")]}, tmp_path / "out", tmp_path, overwrite=True)

    merged(body | {"models": [str(folder / "e3")]}, tmp_path / "out", tmp_path, overwrite=True)

    expected = load_file(folder / "e3" / "model.safetensors")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert all(bool((found[name] == values).all()) for name, values in expected.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_model_that_was_put_aside_when_the_merge_was_killed_comes_back(folder: Path, tmp_path: Path) -> None:
    body = {"method": "average", "models": [str(folder / "e1")]}
    merged(body, tmp_path / "out", tmp_path)
    (tmp_path / "out").rename(tmp_path / "out.replaced")

    with pytest.raises(Conflict, match="--overwrite"):
        merged(body, tmp_path / "out", tmp_path)

    assert (tmp_path / "out" / "model.safetensors").is_file()

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from modelworks.app import folder_merging
from modelworks.cli.main import run_command
from modelworks.core.errors import Cancelled
from tiny import tiny_llama


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "e1", "e2")):
        tiny_llama(folder / name, seed)
    return folder


@pytest.fixture
def recipe(models: Path, tmp_path: Path) -> Path:
    file = tmp_path / "mergekit.yml"
    listed = "".join(f"- {{model: {models / name}, parameters: {{weight: 0.5}}}}\n" for name in ("e1", "e2"))
    file.write_text(f"merge_method: linear\nparameters: {{int8_mask: true}}\nmodels:\n{listed}")
    return file


def test_mergekits_file_and_a_folder_are_enough(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run_command(["merge", str(recipe), "--out", str(tmp_path / "out"), "--home", str(tmp_path / "home")])

    told = capsys.readouterr()
    assert code == 0
    assert told.out.startswith(f"{tmp_path / 'out'}  made in")
    assert "note: parameters.int8_mask has no effect" in told.err
    assert "merge: merging" in told.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mergekit.yml", "out"]
    assert "model.safetensors" in {path.name for path in (tmp_path / "out").iterdir()}


def test_options_are_enough_as_well(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run_command(
        ["merge", "--method", "ties_merging", "--base", str(models / "base"), "--models", str(models / "e1"),
         str(models / "e2"), "--param", "scaling_coefficient=0.3", "--out", str(tmp_path / "out"), "--json", "-q"]
    )  # fmt: skip

    told = capsys.readouterr()
    assert (code, told.err) == (0, "")
    assert json.loads(told.out)["method"] == "ties_merging"
    assert '"scaling_coefficient": 0.3' in (tmp_path / "out" / "README.md").read_text()


def test_a_dry_run_tells_and_does_nothing(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["merge", str(recipe), "--dry-run", "--out", str(tmp_path / "out"), "--workers", "3"]

    assert run_command(arguments) == 0
    table = capsys.readouterr().out
    assert run_command([*arguments, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)

    assert "bytes written" in table
    # Two models in bfloat16 are read, one is written; each has 9 tensors in each of 2 layers, and 2 more.
    assert (facts["tensors_merged"], facts["workers"], facts["dtype"]) == (20, 3, "bfloat16")
    assert facts["bytes_read"] == 2 * facts["bytes_written"] == 4 * facts["parameters"]
    assert facts["notes"] == ["parameters.int8_mask has no effect on linear"]
    assert [path.name for path in tmp_path.iterdir()] == ["mergekit.yml"]


def test_every_problem_of_a_file_is_a_line(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe.write_text("merge_method: linear\nmodels: [{model: a}, {model: b, parameters: {wieght: 1}}]\n")

    code = run_command(["merge", str(recipe), "--out", str(tmp_path / "out")])

    lines = capsys.readouterr().err.splitlines()
    assert code == 2
    assert [line.partition(":")[0].strip() for line in lines[1:]] == [
        "models.1.parameters.wieght", "models.0", "models.1"
    ]  # fmt: skip


def test_without_a_folder_mergekits_names_are_the_workspaces(
    recipe: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = ["--home", str(tmp_path / "home")]
    for name in ("e1", "e2"):
        assert (
            run_command(
                ["models", "add", str(models / name), "--name", f"me/{name}", "--allow-path", str(models), *home]
            )
            == 0
        )
    recipe.write_text(recipe.read_text().replace(f"{models}/", "me/"))
    capsys.readouterr()

    assert run_command(["merge", str(recipe), "--name", "me/both", "--no-wait", *home]) == 0
    assert run_command(["merge", str(recipe), "--out", str(tmp_path / "out"), *home]) == 0
    job_id = capsys.readouterr().out.splitlines()[0]
    assert run_command(["jobs", "show", job_id, "--json", *home]) == 0

    spec = json.loads(capsys.readouterr().out)["spec"]
    assert (spec["method"], spec["models"], spec["name"]) == ("linear", ["me/e1", "me/e2"], "me/both")
    assert (tmp_path / "out" / "config.json").is_file()


def test_ctrl_c_ends_a_merge_at_its_next_piece(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_merge: object, _out: Path, _progress: object, stopped: Any, **_options: object) -> None:
        assert not stopped()
        signal.raise_signal(signal.SIGINT)
        assert stopped()
        raise Cancelled

    monkeypatch.setattr(folder_merging, "merge_folders", interrupted)
    before = signal.getsignal(signal.SIGINT)

    assert run_command(["merge", str(recipe), "--out", str(tmp_path / "out")]) == 130
    assert signal.getsignal(signal.SIGINT) is before

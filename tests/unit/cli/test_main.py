from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from modelworks.cli.main import EXIT_CODES, cli, run_command
from modelworks.core import errors

HEAVY = ("pydantic", "sqlalchemy", "fastapi", "torch", "transformers", "rich", "yaml", "httpx2")


def commands(group: click.Group, path: str = "modelworks") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")


EVERY = dict(commands(cli))


def test_starting_imports_nothing_heavy() -> None:
    code = f"import modelworks.cli.main, sys; print([name for name in {HEAVY!r} if name in sys.modules])"

    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert printed.strip() == "[]"


@pytest.mark.parametrize("path", EVERY)
def test_every_command_has_a_line_of_help_and_an_example(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = run_command([*path.split()[1:], "--help"])

    printed = capsys.readouterr().out
    assert code == 0
    assert EVERY[path].get_short_help_str()
    assert "Example" in printed
    assert path in printed.partition("Example")[2]
    assert "--json" in printed


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.Invalid("x"), 2), (errors.UnsafeFormat("x"), 2), (errors.Unavailable("x"), 3),
        (errors.OutOfSpace("x"), 1), (errors.NotFound("x"), 4), (errors.Conflict("x"), 5), (errors.Denied("x"), 1),
    ],
)  # fmt: skip
def test_each_kind_of_error_has_its_exit_code(error: errors.ModelworksError, code: int) -> None:
    assert next((code for kind, code in EXIT_CODES if isinstance(error, kind)), 1) == code


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["jobs", "ls", "--home", "{file}"], 1, "cannot be used"),
        (["jobs", "ls", "--home", "{folder}", "--kind", "trian"], 4, "did you mean train"),
        (["models", "show", "nobody", "--lineage", "--home", "{folder}"], 4, "no model is called"),
        (["upload", "n" * 300, "--home", "{folder}"], 1, "File name too long"),
        (["serve", "--keep-alive", "soon", "--home", "{folder}"], 2, "write 90s"),
        (["train", "--model", "m", "--dataset", "d", "--sweep", "lr=", "--home", "{folder}"], 2, "has no values"),
    ],
)  # fmt: skip
def test_what_the_machine_or_a_value_lacks_is_told_in_one_line(
    arguments: list[str], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    places = {"file": str(tmp_path / "file" / "home"), "folder": str(tmp_path / "home")}

    assert run_command([each.format(**places) for each in arguments]) == code

    printed = capsys.readouterr().err
    assert said in printed
    assert len(printed.splitlines()) == 1


def test_a_missing_job_is_exit_code_4_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run_command(["jobs", "show", "nothing", "--home", str(tmp_path)])

    told = capsys.readouterr()
    assert code == 4
    assert told.out == ""
    assert told.err.startswith("modelworks: ")
    assert "nothing" in told.err


def test_with_json_an_error_is_an_object_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run_command(["--json", "models", "show", "x/y", "--home", str(tmp_path)])

    body = json.loads(capsys.readouterr().err)
    assert code == 4
    assert body["error"]["code"] == "not_found"
    assert "modelworks pull x/y" in body["error"]["message"]


def test_an_option_goes_over_the_same_field_by_another_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text("model: a\ndataset: b\nepochs: 2\n")

    code = run_command(["train", str(spec), "--num-train-epochs", "0", "--home", str(tmp_path)])

    told = capsys.readouterr().err
    assert code == 2
    assert "num_train_epochs: Input should be greater than 0" in told
    assert "mean the same" not in told


def test_a_misspelt_key_is_told_with_the_nearest_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text("model: a\ndataset: b\nlerning_rate: 0.1\n")

    code = run_command(["train", str(spec), "--home", str(tmp_path / "home")])

    assert code == 2
    assert "did you mean learning_rate" in capsys.readouterr().err


def test_several_problems_are_listed_one_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run_command(["merge", "--models", "a", "b", "--home", str(tmp_path)])

    lines = capsys.readouterr().err.splitlines()
    assert code == 4
    assert [line.partition(":")[0] for line in lines] == ["modelworks", "  a", "  b"]


@pytest.mark.parametrize("arguments", [["trian"], ["train", "--lerning-rate", "1"], ["jobs", "ls", "--state", "odd"]])
def test_wrong_usage_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(arguments) == 2
    assert "--help" in capsys.readouterr().err


def test_a_command_of_the_workspace_does_not_pretend_to_ask_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["jobs", "ls", "--server", "http://localhost:1"]) == 1
    assert "leave --server out" in capsys.readouterr().err


def test_settings_tell_where_they_come_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELWORKS_PORT", "9000")
    monkeypatch.setenv("MODELWORKS_API_KEY", "hidden-away")

    code = run_command(["config", "show", "--origin", "--json", "--home", str(tmp_path)])

    printed = capsys.readouterr().out
    shown = json.loads(printed)
    assert code == 0
    assert shown["port"] == {"value": 9000, "origin": "MODELWORKS_PORT"}
    assert shown["home"] == {"value": str(tmp_path), "origin": "--home"}
    assert "hidden-away" not in printed


def test_a_server_that_does_not_answer_is_exit_code_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run_command(["chat", "some", "hello", "--server", "http://127.0.0.1:9", "--home", str(tmp_path)])

    assert code == 3
    assert "no answer from http://127.0.0.1:9" in capsys.readouterr().err

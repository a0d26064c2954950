from __future__ import annotations

from pathlib import Path

import pytest

from modelworks.cli.main import run_command
from tiny import tiny_llama


@pytest.fixture
def home(tmp_path: Path) -> str:
    home = str(tmp_path / "home")
    tiny_llama(tmp_path / "tiny")
    assert run_command(["models", "add", str(tmp_path / "tiny"), "--name", "tiny", "--home", home]) == 0
    return home


def test_a_folder_is_looked_at_and_then_imported(tmp_path: Path, home: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows"
    rows.mkdir()
    (rows / "train.csv").write_text("prompt,completion\nhi,ho\nhi,ho\n")
    (rows / "test.csv").write_text("prompt,completion\nhi,ho\n")
    (rows / "gone.csv").symlink_to("/nowhere")
    command = ["upload", str(rows), "--model", "tiny", "--max-length", "30", "--home", home]
    capsys.readouterr()

    codes = [run_command([*command, "--dry-run"]), run_command(command), run_command([*command, "--replace"])]

    told = capsys.readouterr()
    assert codes == [0, 0, 0]
    assert "dry run  prompt_completion, 2 rows to train on, 1 held out; left out: 0 empty, 0 bad" in told.out
    assert "\nrows  prompt_completion" in told.out
    # a byte a token and one for each mark: 1 + 7 + 1 + 1 + 1 + 12 + 1 = 24
    assert "cut at 30 tokens: 0 rows lose their end, 0 have nothing left to learn" in told.out
    assert "⟦ho<|im_end|>⟧" in told.out
    assert "that stand on the other: 2, kept" in told.err


def test_a_length_without_a_model_and_a_missing_file_are_refused(
    tmp_path: Path, home: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.txt").write_text("one\ntwo\n")

    assert run_command(["upload", str(tmp_path / "rows.txt"), "--max-length", "9", "--home", home]) == 2
    assert run_command(["upload", str(tmp_path / "none.txt"), "--home", home]) == 4
    assert run_command(["datasets", "preview", "rows", "--home", home]) == 4
    assert "name a model" in capsys.readouterr().err

from __future__ import annotations

from pathlib import Path

import pytest

from modelworks.train.checkpoints import ResumeMismatch, keep_newest, newest_verified, seal


def checkpoint(folder: Path, step: int, sealed: str | None = "same") -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "weights").write_bytes(b"w" * step)
    if sealed is not None:
        seal(path, sealed)
    return path


def test_the_newest_by_number_is_found(tmp_path: Path) -> None:
    checkpoint(tmp_path, 9)
    newest = checkpoint(tmp_path, 10)

    assert newest_verified(tmp_path, "same") == newest


def test_one_that_was_cut_while_being_written_is_removed(tmp_path: Path) -> None:
    whole = checkpoint(tmp_path, 2)
    unsealed = checkpoint(tmp_path, 4, sealed=None)
    changed = checkpoint(tmp_path, 6)
    (changed / "weights").write_bytes(b"other")

    assert newest_verified(tmp_path, "same") == whole
    assert not unsealed.exists()
    assert not changed.exists()


def test_one_of_another_training_is_refused_and_kept(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 2, sealed="other")

    with pytest.raises(ResumeMismatch):
        newest_verified(tmp_path, "same")

    assert path.exists()


def test_there_may_be_none(tmp_path: Path) -> None:
    assert newest_verified(tmp_path / "missing", "same") is None


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (2, 4, 10):
        checkpoint(tmp_path, step)

    keep_newest(tmp_path, 2)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-4"]

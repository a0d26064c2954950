from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from modelworks.core.errors import OutOfSpace
from modelworks.core.hashing import digest_of, list_files
from modelworks.core.nouns import ArtifactKind
from modelworks.store.files import check_space, discard, mirror, place_of, settle, sweep, try_lock, write_atomically


def staged(home: Path, text: str) -> Path:
    folder = home / "staging" / text
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text(text)
    return folder


def test_equal_content_has_one_place(tmp_path: Path) -> None:
    first = staged(tmp_path, "a")
    place = place_of(tmp_path, ArtifactKind.DATASET, digest_of(list_files(first)))
    settle(first, place)
    again = tmp_path / "staging" / "again"
    again.mkdir()
    (again / "train.jsonl").write_text("a")

    assert place_of(tmp_path, ArtifactKind.DATASET, digest_of(list_files(again))) == place
    settle(again, place)
    assert not again.exists()
    assert [file.name for file in place.iterdir()] == ["train.jsonl"]


def test_published_files_are_read_only(tmp_path: Path) -> None:
    place = tmp_path / "models" / "ab" / "abc"
    settle(staged(tmp_path, "a"), place)

    assert (place / "train.jsonl").stat().st_mode & 0o222 == 0
    discard(place)
    assert list(place.parent.iterdir()) == []


def test_a_sweep_removes_only_what_is_old_and_unknown(tmp_path: Path) -> None:
    old = time.time() - 1000
    for name in ("known", "unknown", "young"):
        place = tmp_path / "models" / name[:2] / name
        settle(staged(tmp_path, name), place)
        if name != "young":
            os.utime(place, (old, old))
    left = staged(tmp_path, "left")
    os.utime(left, (old, old))

    removed = sweep(tmp_path, {"models/kn/known"}, older_than_seconds=500)

    assert sorted(removed) == ["models/un/unknown", "staging/left"]
    assert (tmp_path / "models" / "kn" / "known").exists()
    assert (tmp_path / "models" / "yo" / "young").exists()


def test_only_one_holds_a_lock(tmp_path: Path) -> None:
    held = try_lock(tmp_path / "lock")

    assert held is not None
    assert try_lock(tmp_path / "lock") is None
    os.close(held)
    again = try_lock(tmp_path / "lock")
    assert again is not None
    os.close(again)


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a.json", b"old")
    write_atomically(tmp_path / "a.json", b"new")

    assert (tmp_path / "a.json").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_too_little_space_is_said_with_both_figures(tmp_path: Path) -> None:
    with pytest.raises(OutOfSpace, match=r"1000000000\.0 GB needed"):
        check_space(tmp_path, 10**18)


def test_a_mirrored_folder_appears_whole_and_latest_leads_to_it(tmp_path: Path) -> None:
    place = tmp_path / "models" / "ab" / "abc"
    settle(staged(tmp_path, "a"), place)
    for job in ("one", "two"):
        mirror(place, tmp_path / "results" / job)
        mirror(place, tmp_path / "results" / job)

    discard(place)

    assert (tmp_path / "results" / "one" / "train.jsonl").read_text() == "a"
    assert (tmp_path / "results" / "latest").resolve() == tmp_path / "results" / "two"
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["latest", "one", "two"]

from __future__ import annotations

from pathlib import Path

import pytest

from modelworks.core.errors import Denied, Invalid
from modelworks.core.ids import check_name, new_id
from modelworks.core.paths import inside
from modelworks.core.registry import nearest

HOSTILE = [
    "",
    "..",
    "../x",
    "/etc",
    "a//b",
    "a/../b",
    "a/b/c",
    ".hidden",
    "a\0b",
    "C:\\x",
    "con",
    "nul.txt",
    "a b",
    "é",
    "x" * 129,
    "ft:base",
    "ft:a/b/c:org:s:1",
    "ft:../x:org:s:1",
    "ft:base:org:nul.txt:1",
    "a:b",
    "gt:base:org:s:1",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_refused(name: str) -> None:
    with pytest.raises(Invalid, match="is not a name"):
        check_name(name)


@pytest.mark.parametrize("name", ["a", "ORG/NAME", "SmolLM2-135M_v1.0", "x" * 128, "ft:o/b:org:s:1a", "ft:b:org::1a"])
def test_a_usual_name_is_accepted(name: str) -> None:
    assert check_name(name) == name


def test_a_link_out_of_the_root_is_denied(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to("/etc")

    with pytest.raises(Denied, match="--allow-path"):
        inside(root / "link", (root,))


def test_a_path_is_inside_only_by_its_parts(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root-other").mkdir()

    assert inside(tmp_path / "root", (tmp_path / "root",)) == tmp_path / "root"
    with pytest.raises(Denied):
        inside(tmp_path / "root-other", (tmp_path / "root",))


def test_ids_sort_by_time_and_differ() -> None:
    ids = [new_id() for _ in range(1000)]

    assert len(set(ids)) == 1000
    assert [item[:13] for item in ids] == sorted(item[:13] for item in ids)
    assert all(item[14] == "7" for item in ids)


def test_the_nearest_name_is_suggested() -> None:
    assert nearest("learning_rat", ["learning_rate", "lora_r"]) == "did you mean learning_rate?"
    assert nearest("zzz", ["a", "b"]) == "known: a, b"

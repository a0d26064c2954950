from __future__ import annotations

import json
from pathlib import Path

import pytest

from modelworks.core.errors import Invalid, UnsafeFormat
from modelworks.weights.safety import check_folder


@pytest.mark.parametrize("name", ["pytorch_model.bin", "a.pt", "b.PTH", "c.ckpt", "deep/d.pkl", "e.joblib", "f.npy"])
def test_a_pickle_is_refused_by_name(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"")

    with pytest.raises(UnsafeFormat, match=f"{name}: a pickle.*convert to safetensors"):
        check_folder(tmp_path)


def test_code_is_refused_even_when_nothing_names_it(tmp_path: Path) -> None:
    (tmp_path / "modeling_x.py").write_text("")

    with pytest.raises(UnsafeFormat, match=r"modeling_x\.py: code"):
        check_folder(tmp_path)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("key", ["auto_map", "_attn_implementation_internal"])
def test_a_config_that_names_code_is_refused(tmp_path: Path, file: str, key: str) -> None:
    (tmp_path / file).write_text(json.dumps({key: {"AutoModel": "evil--x.Y"}}))

    with pytest.raises(UnsafeFormat, match=f"{file}: {key}"):
        check_folder(tmp_path)


def test_a_link_out_of_the_folder_is_refused_and_one_inside_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.json").write_text("{}")
    (folder / "a.json").write_text("{}")
    (folder / "b.json").symlink_to(folder / "a.json")
    check_folder(folder)

    (folder / "c.json").symlink_to(tmp_path / "secret.json")

    with pytest.raises(UnsafeFormat, match=r"c\.json: links out"):
        check_folder(folder)


def test_everything_wrong_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.bin").touch()
    (tmp_path / "b.py").touch()

    with pytest.raises(UnsafeFormat) as caught:
        check_folder(tmp_path)

    assert [problem.where for problem in caught.value.problems] == ["a.bin", "b.py"]


def test_broken_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")

    with pytest.raises(Invalid, match=r"config\.json: not valid JSON"):
        check_folder(tmp_path)

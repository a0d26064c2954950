from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modelworks.core.errors import Invalid, OutOfSpace
from modelworks.weights.reader import INDEX, Checkpoint
from modelworks.weights.writer import CheckpointWriter, Planned

PLAN = [Planned("a", "F32", (3, 2)), Planned("b", "BF16", (5,)), Planned("c", "F32", ())]
A = torch.arange(6.0).reshape(3, 2)
B = torch.arange(5.0).bfloat16()
C = torch.tensor(7.0)


def write(folder: Path, max_shard_bytes: int = 1 << 30) -> None:
    with CheckpointWriter(folder, PLAN, max_shard_bytes) as writer:
        writer.write("c", C)
        writer.write("a", A.flatten()[4:], start=4)
        writer.write("b", B)
        writer.write("a", A.flatten()[:4])


def test_pieces_in_any_order_make_a_file_that_safetensors_reads(tmp_path: Path) -> None:
    write(tmp_path)

    found = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in {"a": A, "b": B, "c": C}.items())


def test_shards_and_their_index_are_read_as_one_checkpoint(tmp_path: Path) -> None:
    # a is 24 bytes and fills the first shard; b and c, 10 + 4, go in the second.
    write(tmp_path, max_shard_bytes=25)

    index = json.loads((tmp_path / INDEX).read_text())
    assert index["weight_map"] == {
        "a": "model-00001-of-00002.safetensors",
        "b": "model-00002-of-00002.safetensors",
        "c": "model-00002-of-00002.safetensors",
    }
    with Checkpoint.open(tmp_path) as checkpoint:
        assert torch.equal(checkpoint.read("a"), A)
        assert torch.equal(checkpoint.read("b", 1, 4), B[1:4])
        assert torch.equal(checkpoint.read("c"), C)


def test_what_lies_there_from_an_earlier_run_needs_no_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path)
    full = os.statvfs_result((4096, 4096, 9, 0, 0, 9, 9, 9, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _folder: full)

    with CheckpointWriter(tmp_path, PLAN, again=True) as writer:
        writer.write("c", C)

    (tmp_path / "other").mkdir()
    with pytest.raises(OutOfSpace, match="make room"):
        write(tmp_path / "other")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write(tmp_path, max_shard_bytes=25)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()

    with pytest.raises(Invalid, match="names shard model-00002-of-00002"):
        Checkpoint.open(tmp_path)


def test_an_index_that_lies_is_refused(tmp_path: Path) -> None:
    write(tmp_path, max_shard_bytes=25)
    index = json.loads((tmp_path / INDEX).read_text())
    index["weight_map"]["d"] = index["weight_map"]["a"]
    (tmp_path / INDEX).write_text(json.dumps(index))

    with pytest.raises(Invalid, match="says d is in model-00001"):
        Checkpoint.open(tmp_path)


def test_an_index_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    write(tmp_path)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))

    with pytest.raises(Invalid, match="not in the folder"):
        Checkpoint.open(folder)


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="only safetensors"):
        Checkpoint.open(tmp_path)

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file

from modelworks.core.errors import Invalid
from modelworks.weights.convert import convert_gguf
from modelworks.weights.gguf_checkpoint import as_checkpoint, is_quantised, open_weights
from tiny import tiny_gguf


@pytest.mark.parametrize("kind", [gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.F16])
def test_what_is_read_in_any_pieces_rounds_to_what_is_converted(
    tmp_path: Path, kind: gguf.GGMLQuantizationType
) -> None:
    source = tiny_gguf(tmp_path / "model.gguf", kind)
    converted = tmp_path / "converted"
    converted.mkdir()
    convert_gguf(source, converted)
    whole = load_file(converted / "model.safetensors")

    folder = as_checkpoint(source, tmp_path / "scratch")

    assert is_quantised(source) == (kind is gguf.GGMLQuantizationType.Q8_0)
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        assert (folder / name).read_bytes() == (converted / name).read_bytes()
    with open_weights(folder) as checkpoint:
        assert checkpoint.tensors.keys() == whole.keys()
        sizes = [info.size_bytes for info in checkpoint.tensors.values()]
        assert min(sizes) > 0
        assert sum(sizes) == source.stat().st_size - min(info.start for info in checkpoint.tensors.values())
        for name, values in whole.items():
            assert checkpoint.tensors[name].shape == tuple(values.shape)
            assert torch.equal(checkpoint.read(name).bfloat16(), values), name
            flat, step = values.view(-1), 77
            for start in range(0, len(flat), step):
                part = checkpoint.read(name, start, min(start + step, len(flat)))
                assert torch.equal(part.bfloat16(), flat[start : start + step]), name


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"not one at all")

    with pytest.raises(Invalid, match="does not begin with GGUF"):
        as_checkpoint(tmp_path / "x.gguf", tmp_path)


def test_a_head_of_lists_in_lists_without_end_is_refused(tmp_path: Path) -> None:
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k" + struct.pack("<I", 9)
    (tmp_path / "x.gguf").write_bytes(head + struct.pack("<IQ", 9, 1) * 5000)

    with pytest.raises(Invalid, match="head is damaged"):
        as_checkpoint(tmp_path / "x.gguf", tmp_path)

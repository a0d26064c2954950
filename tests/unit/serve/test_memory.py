from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from modelworks.core.errors import OutOfMemory
from modelworks.serve.memory import available_bytes, check_memory


def model_of(folder: Path, *shape: int) -> Path:
    """The head of a checkpoint with one tensor, and nothing behind it."""
    folder.mkdir()
    head = json.dumps({"w": {"dtype": "BF16", "shape": shape, "data_offsets": [0, 0]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head)
    config = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_what_does_not_fit_is_refused_with_both_figures(tmp_path: Path) -> None:
    with pytest.raises(OutOfMemory, match=r"big needs about 2400000\.00 GB \(weights 2000000\.00, .* GB are free"):
        check_memory("big", model_of(tmp_path / "big", 10**9, 10**6), "bfloat16", 0)


def test_the_need_is_weights_in_the_engines_precision_and_a_first_cache_and_a_fifth(tmp_path: Path) -> None:
    folder = model_of(tmp_path / "small", 1000, 1000)
    cache = 2 * 2 * 2 * 8 * 4 * 4096
    assert check_memory("small", folder, "float32", 0) == int((4_000_000 + cache) * 1.2)
    assert check_memory("small", folder, "bfloat16", 0) == int((2_000_000 + cache / 2) * 1.2)
    assert check_memory("small", folder, "float32", 0, quantization="int8") == int((1_000_000 + cache) * 1.2)


def test_engines_that_are_being_loaded_count(tmp_path: Path) -> None:
    folder = model_of(tmp_path / "small", 1000, 1000)
    with pytest.raises(OutOfMemory, match=r"0\.00 GB are free"):
        check_memory("small", folder, "float32", 1 << 50)
    with pytest.raises(OutOfMemory, match="for 1000000 engines"):
        check_memory("small", folder, "float32", 0, 1_000_000)


def test_files_that_cannot_be_read_are_left_for_the_engine_to_judge(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"no")
    assert check_memory("broken", tmp_path, None, 0) == 0


def test_a_containers_limit_counts_less_what_it_may_drop(tmp_path: Path) -> None:
    for name, text in {"max": "5000", "current": "3000", "stat": "anon 1\ninactive_file 500\n"}.items():
        (tmp_path / f"memory.{name}").write_text(text)
    assert available_bytes(tmp_path) == 2500

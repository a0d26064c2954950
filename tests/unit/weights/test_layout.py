from __future__ import annotations

import json
from pathlib import Path

import pytest

from modelworks.core.errors import Invalid
from modelworks.weights.layout import inspect_adapter, inspect_model, what_is
from tiny import tiny_adapter, tiny_llama


def test_a_model_is_described_by_its_headers(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model")

    assert what_is(folder) == "model"
    # embedding 259*16; a layer: q and o 16*16, k and v 8*16, three of 24*16, two norms of 16; a last norm of 16
    parameters = 259 * 16 + 2 * (2 * 256 + 2 * 128 + 3 * 384 + 32) + 16
    assert inspect_model(folder) == {
        "architecture": "LlamaForCausalLM",
        "dtype": "bfloat16",
        "parameters": parameters,
        "vocab_size": 259,
        "context_length": 256,
    }


def test_an_adapter_is_described_by_its_headers(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "model")
    folder = tiny_adapter(tmp_path / "lora", base, rank=2)

    assert what_is(folder) == "adapter"
    # two layers; q: 2*(16+16), v: 2*(16+8)
    assert inspect_adapter(folder) == {
        "rank": 2,
        "alpha": 3.0,
        "target_modules": ("q_proj", "v_proj"),
        "parameters": 2 * (64 + 48),
        "base_name": str(base),
    }


def test_a_folder_that_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="neither a model nor an adapter"):
        what_is(tmp_path)


def test_a_config_without_a_number_is_refused(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    del config["vocab_size"]
    (folder / "config.json").write_text(json.dumps(config))

    with pytest.raises(Invalid, match="vocab_size is None"):
        inspect_model(folder)

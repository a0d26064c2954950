from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import torch
from safetensors.torch import load_file

from modelworks.app.folder_merging import merge_folders, plan_folders
from modelworks.core.config import Settings
from modelworks.core.nouns import JsonObject
from modelworks.weights.convert import convert_gguf
from tiny import tiny_adapter, tiny_gguf, tiny_llama


def merge(tmp_path: Path, **body: Any) -> tuple[JsonObject, tuple[str, ...], Path]:
    planned = plan_folders(body, Settings(home=tmp_path / "home"), 1)
    out = tmp_path / "out"
    return (
        merge_folders(planned, out, lambda _facts: None, lambda: False, workers=1, overwrite=True),
        planned.estimate.notes,
        out,
    )


def weights(folder: Path) -> Mapping[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    return found


def test_gguf_files_are_merged_as_the_models_in_them_and_quantised_ones_with_a_note(tmp_path: Path) -> None:
    base = tiny_gguf(tmp_path / "base.gguf", gguf.GGMLQuantizationType.BF16)
    expert = tiny_gguf(tmp_path / "expert.gguf", gguf.GGMLQuantizationType.Q8_0, 1)
    (tmp_path / "converted").mkdir()
    convert_gguf(expert, tmp_path / "converted")

    result, notes, out = merge(tmp_path, method="task_arithmetic", base=str(base), models=[str(expert)])

    assert result["tensors_merged"] == result["tensors"] == 20
    assert [note.startswith(f"{expert} is quantised") for note in notes] == [True]
    merged, expected = weights(out), weights(tmp_path / "converted")
    for name, values in expected.items():
        # b + (e - b) in float32 may differ from e by a last bit, and that by one step of bfloat16.
        torch.testing.assert_close(merged[name], values, rtol=2**-7, atol=1e-6, msg=name)
    assert (out / "tokenizer.json").is_file()
    assert not (out / "model.gguf").exists()


def test_adapters_become_an_adapter_in_a_folder(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    adapters = [str(tiny_adapter(tmp_path / name, base, seed)) for seed, name in enumerate("ab")]

    _, _, out = merge(tmp_path, method="lora_add", base=str(base), models=adapters, weights=[1, -1])

    names = {"README.md", "adapter_config.json", "adapter_model.safetensors", "merge_report.json"}
    assert {path.name for path in out.iterdir()} == names
    assert not (tmp_path / "out.partial").exists()

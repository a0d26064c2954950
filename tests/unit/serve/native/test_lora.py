"""Reading adapters: what does not fit is refused by name, and nothing is half loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from modelworks.core.errors import Invalid, ModelworksError, Unsupported
from modelworks.serve.native.config import read_shape
from modelworks.serve.native.lora import read_adapter
from tiny import tiny_adapter, tiny_llama


@pytest.mark.parametrize(
    ("setting", "value"),
    [("modules_to_save", ["embed_tokens"]), ("bias", "all"), ("fan_in_fan_out", True), ("init_lora_weights", "pissa")],
)
def test_what_changes_the_arithmetic_is_refused_by_name(tmp_path: Path, setting: str, value: object) -> None:
    base = tiny_llama(tmp_path / "model")
    folder = tiny_adapter(tmp_path / "adapter", base)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {setting: value}))

    with pytest.raises(Unsupported, match=setting):
        read_adapter(folder, read_shape(base))


@pytest.mark.parametrize("trained", [True, False])
def test_lengths_without_their_flag_and_the_flag_without_lengths_are_refused(tmp_path: Path, trained: bool) -> None:
    base = tiny_llama(tmp_path / "model")
    folder = tiny_adapter(tmp_path / "adapter", base, use_dora=trained)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"use_dora": not trained}))

    with pytest.raises(Invalid, match=r"layer 0, self_attn.q_proj has only a part of its update"):
        read_adapter(folder, read_shape(base))


def test_an_adapter_of_another_model_is_refused_naming_the_layer(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "model")
    other = tiny_llama(tmp_path / "other", hidden_size=32)
    folder = tiny_adapter(tmp_path / "adapter", other)

    with pytest.raises(Invalid, match=r"layer 0, self_attn.q_proj .* belongs to another model"):
        read_adapter(folder, read_shape(base))


def test_an_update_of_the_output_head_has_no_place(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "model", tie_word_embeddings=False)
    folder = tiny_adapter(tmp_path / "adapter", base, targets=("q_proj", "lm_head"))

    with pytest.raises(Unsupported, match="lm_head"):
        read_adapter(folder, read_shape(base))


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "model")
    folder = tiny_adapter(tmp_path / "adapter", base)
    (folder / "adapter_model.safetensors").write_bytes(b"half a file")

    with pytest.raises(Invalid, match=r"adapter_model\.safetensors cannot be read"):
        read_adapter(folder, read_shape(base))


def test_an_unknown_architecture_is_refused_naming_what_is_served(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model", architectures=["GPT2LMHeadModel"])

    with pytest.raises(ModelworksError, match=r"cannot run GPT2LMHeadModel; it runs LlamaForCausalLM"):
        read_shape(folder)

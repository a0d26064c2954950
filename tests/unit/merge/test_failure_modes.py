"""What can be wrong with a merge: each has its own code, is found by headers alone, at once, and leaves nothing."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from artifacts import as_adapter, as_model
from modelworks.core.errors import Invalid, Problem
from modelworks.core.nouns import AnyArtifact
from modelworks.merge.plan import make_plan
from modelworks.merge.spec import MergeSpec
from modelworks.weights.reader import Checkpoint
from tiny import SPECIAL, tiny_adapter, tiny_llama

UP = "model.layers.0.mlp.up_proj.weight"


@dataclass
class House:
    """A base, an expert and an adapter of the base, to be broken."""

    folder: Path
    inputs: dict[str, AnyArtifact]

    @property
    def expert(self) -> Path:
        return self.folder / "expert"

    def weights(self, change: Callable[[dict[str, torch.Tensor]], Any], name: str = "expert") -> None:
        file = next((self.folder / name).glob("*.safetensors"))
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)

    def json(self, file: str, name: str = "expert", **entries: Any) -> None:
        path = self.folder / name / file
        held = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**held, **entries}))

    def tokens(self, change: Callable[[dict[str, Any]], Any]) -> None:
        path = self.expert / "tokenizer.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny_llama(folder / "base", 0)
    tiny_llama(folder / "expert", 1)
    tiny_adapter(folder / "lora", folder / "base")
    return folder


@pytest.fixture
def house(models: Path, tmp_path: Path) -> House:
    folder = tmp_path / "house"
    shutil.copytree(models, folder)
    base = as_model(folder / "base", "base")
    expert = as_model(folder / "expert", "expert")
    return House(folder, {"base": base, "expert": expert, "lora": as_adapter(folder / "lora", "lora", base)})


def swap(mapping: dict[str, Any], one: str, other: str) -> None:
    mapping[one], mapping[other] = mapping[other], mapping[one]


def rename(content: dict[str, Any], old: str, new: str) -> None:
    vocabulary = content["model"]["vocab"]
    vocabulary[new] = vocabulary.pop(old)


def cut_short(house: House) -> None:
    file = house.expert / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def header(house: House, text: bytes) -> None:
    (house.expert / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(64))


def lose_a_shard(house: House) -> None:
    (house.expert / "model.safetensors").rename(house.expert / "model-00001-of-00002.safetensors")
    shards = {UP: "model-00001-of-00002.safetensors", "model.norm.weight": "model-00002-of-00002.safetensors"}
    house.json("model.safetensors.index.json", weight_map=shards)


def only(house: House, name: str, content: bytes = b"GGUF") -> None:
    (house.expert / "model.safetensors").unlink()
    (house.expert / name).write_bytes(content)


def without_rank(tensors: dict[str, torch.Tensor]) -> None:
    for name, values in sorted(tensors.items())[:2]:
        tensors[name] = (values[:0] if "lora_A" in name else values[:, :0]).clone()


def of_another_base(house: House) -> None:
    house.inputs["lora"] = as_adapter(house.folder / "lora", "lora", as_model(house.expert, "expert"))


def as_adapter_folder(house: House) -> None:
    shutil.rmtree(house.expert)
    shutil.copytree(house.folder / "lora", house.expert)


def pad_embedding(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.embed_tokens.weight"] = torch.zeros(264, 16, dtype=torch.bfloat16)


def resize(house: House) -> None:
    house.weights(pad_embedding)
    house.json("config.json", vocab_size=264)


def untie(house: House) -> None:
    house.weights(lambda tensors: tensors.update({"lm_head.weight": torch.zeros(259, 16, dtype=torch.bfloat16)}))
    house.json("config.json", tie_word_embeddings=False)


TWICE = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
Break = Callable[[House], Any]


def nothing(_house: House) -> None:
    """The models are sound; the spec is not."""


# name: (code, words of the message: the facts in conflict and the remedy, what is broken, spec)
CASES: dict[str, tuple[str, tuple[str, ...], Break, dict[str, Any]]] = {
    # 1
    "another kind of model": ("architecture_mismatch", ("model_type is 'qwen2'", "in base 'llama'"),
        lambda house: house.json("config.json", model_type="qwen2"), {}),
    "another width": ("architecture_mismatch", ("hidden_size is 32", "in base 16"),
        lambda house: house.json("config.json", hidden_size=32), {}),
    "other heads": ("architecture_mismatch", ("num_attention_heads is 4", "in base 2"),
        lambda house: house.json("config.json", num_attention_heads=4), {}),
    "another rope": ("architecture_mismatch", ("rope_theta is 500.0", "in base 10000.0"),
        lambda house: house.json("config.json", rope_parameters={"rope_theta": 500.0, "rope_type": "default"}), {}),
    "other layers": ("architecture_mismatch", ("num_hidden_layers is 1", "in base 2"),
        lambda house: house.json("config.json", num_hidden_layers=1), {}),
    # 2
    "a missing tensor": ("tensor_mismatch", ("model.norm.weight is missing", "base has it"),
        lambda house: house.weights(lambda tensors: tensors.pop("model.norm.weight")), {}),
    "an extra tensor": ("tensor_mismatch", ("extra is not in base",),
        lambda house: house.weights(lambda tensors: tensors.update(extra=torch.zeros(1))), {}),
    "another shape": ("tensor_mismatch", (f"{UP} has shape [3, 16]", "in base [24, 16]"),
        lambda house: house.weights(lambda tensors: tensors.update({UP: tensors[UP][:3].clone()})), {}),
    "fewer layers than told": ("tensor_mismatch", ("2 layers", "have 1"),
        lambda house: house.weights(lambda tensors: [tensors.pop(key) for key in list(tensors) if ".1." in key]), {}),
    "another number of tokens": ("vocabulary_mismatch", ("has 264 rows", "in base 259", "base, first, union"),
        resize, {}),
    "rows other than told": ("vocabulary_mismatch", ("vocab_size 259", "264 rows"),
        lambda house: house.weights(pad_embedding), {"tokenizer": "base"}),
    # 4
    "an adapter as the base": ("adapter_mismatch", ("lora is an adapter", "its base is base"),
        nothing, {"base": "lora"}),
    "an adapter of another base": ("adapter_mismatch", ("trained on expert", "not on base"),
        of_another_base, {"models": ["lora"]}),
    "an adapter with half a factor": ("adapter_mismatch", ("has only one of its two factors",),
        lambda house: house.weights(lambda tensors: tensors.pop(min(tensors)), "lora"), {"models": ["lora"]}),
    "an adapter of no rank": ("adapter_mismatch", ("has factors of rank 0 and 0",),
        lambda house: house.weights(without_rank, "lora"), {"models": ["lora"]}),
    "an adapter of more than a LoRA": ("adapter_mismatch", ("bias is 'all'", "fold it into its base"),
        lambda house: house.json("adapter_config.json", "lora", bias="all"), {"models": ["lora"]}),
    "an adapter's folder as a model": ("adapter_mismatch", ("is an adapter, not a full model",),
        as_adapter_folder, {}),
    # 5
    "GPTQ": ("quantised", ("gptq", "use the full weights"),
        lambda house: house.json("config.json", quantization_config={"quant_method": "gptq", "bits": 4}), {}),
    "bitsandbytes": ("quantised", ("bitsandbytes",),
        lambda house: house.json("config.json", quantization_config={"quant_method": "bitsandbytes"}), {}),
    "AWQ of old": ("quantised", ("quant_config.json",),
        lambda house: house.json("quant_config.json", w_bit=4), {}),
    "float8 that no config tells of": ("quantised", (UP,),
        lambda house: house.weights(lambda tensors: tensors.update({UP: tensors[UP].to(torch.float8_e4m3fn)})), {}),
    "packed integers": ("quantised", ("qweight",),
        lambda house: house.weights(lambda tensors: tensors.update({UP[:-6] + "qweight": tensors.pop(UP).int()})), {}),
    "GGUF": ("quantised", ("model-q4.gguf is GGUF",), lambda house: only(house, "model-q4.gguf"), {}),
    # 6
    "a file cut short": ("damaged_file", ("cut short", "the file at"), cut_short, {}),
    "a header that is no JSON": ("damaged_file", ("not sound JSON",), lambda house: header(house, b"{nonsense"), {}),
    "a tensor that occurs twice": ("damaged_file", ("a key occurs twice",), lambda house: header(house, TWICE), {}),
    "a shard that is missing": ("damaged_file", ("model-00002-of-00002.safetensors", "not in the folder"),
        lose_a_shard, {}),
    "a config that is no JSON": ("damaged_file", ("config.json", "not valid JSON"),
        lambda house: (house.expert / "config.json").write_text("{"), {}),
    "a folder that is gone": ("damaged_file", ("is gone",), lambda house: shutil.rmtree(house.expert), {}),
    "a tokenizer that is none": ("damaged_file", ("tokenizer.json",),
        lambda house: (house.expert / "tokenizer.json").write_text("{}"), {}),
    "a damaged base": ("damaged_file", ("not sound JSON",),
        lambda house: header(House(house.folder, {}), b"{"), {"base": "expert", "models": ["base"]}),
    "a pickle": ("unsafe_format", ("pytorch_model.bin is a pickle", "convert it to safetensors"),
        lambda house: only(house, "pytorch_model.bin", b"\x80\x02."), {}),
    # 8
    "an unknown method": ("bad_parameter", ("'tie_merging'", "did you mean ties_merging"),
        nothing, {"method": "tie_merging"}),
    "an unknown parameter": ("bad_parameter", ("params.scaling", "unknown key"), nothing, {"params": {"scaling": 1}}),
    "weights for other models": ("bad_parameter", ("2 weights for 1 models",), nothing, {"weights": [1, 1]}),
    "a rate out of range": ("bad_parameter", ("param_value_mask_rate", "1.5"),
        nothing, {"method": "ties_merging", "params": {"param_value_mask_rate": 1.5}}),
    "a pattern that is none": ("bad_parameter", ("'('",), nothing, {"exclude_param_names_regex": ["("]}),
    "a pattern for nothing": ("bad_parameter", ("'embed_tokens' matches no tensor", "begin with .*"),
        nothing, {"exclude_param_names_regex": ["embed_tokens"]}),
    "a pattern for everything": ("bad_parameter", ("leaves nothing to merge",),
        nothing, {"exclude_param_names_regex": [".*"]}),
    # 10
    "tokens that changed places": ("tokenizer_conflict", ("2 tokens have other numbers", "'A' is", "union"),
        lambda house: house.tokens(lambda content: swap(content["model"]["vocab"], "A", "B")), {}),
    "another token in its place": ("tokenizer_conflict", ("'Alpha' stands where base has 'A'",),
        lambda house: house.tokens(lambda content: rename(content, "A", "Alpha")), {}),
    "tokens that are unknown": ("tokenizer_conflict", ("no tokenizer.json",),
        lambda house: (house.expert / "tokenizer.json").unlink(), {"tokenizer": "union"}),
    "a policy that is none": ("bad_parameter", ("'unoin'", "did you mean union"), nothing, {"tokenizer": "unoin"}),
    "a chat template of nobody": ("bad_parameter", ("'chatml'",), nothing, {"chat_template": "chatml"}),
    "a head of its own": ("tied_heads", ("a head of its own", "base takes its embedding"), untie, {}),
}  # fmt: skip


def refused(house: House, monkeypatch: pytest.MonkeyPatch, **spec: Any) -> tuple[Problem, ...]:
    def read(*_: Any) -> Any:
        raise AssertionError("a weight was read")

    monkeypatch.setattr(Checkpoint, "read", read)
    before = sorted(house.folder.parent.rglob("*"))
    started = time.perf_counter()

    with pytest.raises(Invalid) as caught:
        make_plan(MergeSpec.model_validate({"base": "base", "models": ["expert"], **spec}), house.inputs)

    assert time.perf_counter() - started < 1
    assert sorted(house.folder.parent.rglob("*")) == before
    return caught.value.problems


@pytest.mark.parametrize("case", CASES)
def test_each_is_told_by_its_own_code(house: House, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    code, words, break_it, spec = CASES[case]
    break_it(house)

    problems = refused(house, monkeypatch, **spec)

    assert [problem.code for problem in problems] == [code]
    assert all(word in str(problems[0]) for word in words), str(problems[0])


def test_no_gpu_where_one_is_asked_for(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    from modelworks.merge import fit

    monkeypatch.setattr(fit, "count_gpus", lambda: 0)
    monkeypatch.setattr(fit, "GPU_DEVICES", ())

    (problem,) = refused(house, monkeypatch, device="cuda")

    assert problem.code == "no_device"


def test_all_models_are_told_of_at_once(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    broken: dict[str, Break] = {
        "cut": cut_short,
        "packed": lambda house: only(house, "model.gguf"),
        "narrow": lambda house: house.json("config.json", hidden_size=8),
        "resized": resize,
        "swapped": lambda house: house.tokens(lambda content: swap(content["model"]["vocab"], "A", "B")),
    }
    for name, break_it in broken.items():
        shutil.copytree(house.folder / "base", house.folder / "expert", dirs_exist_ok=True)
        house.inputs[name] = as_model(house.folder / "expert", name)
        break_it(house)
        house.expert.rename(house.folder / name)
        house.inputs[name] = type(house.inputs[name])(**{**vars(house.inputs[name]), "path": house.folder / name})

    problems = refused(house, monkeypatch, models=list(broken), method="no_such", exclude_param_names_regex=["("])

    assert [(problem.where, problem.code) for problem in problems] == [
        ("method", "bad_parameter"),
        ("cut", "damaged_file"),
        ("packed", "quantised"),
        ("narrow", "architecture_mismatch"),
        ("resized", "vocabulary_mismatch"),
        ("exclude_param_names_regex", "bad_parameter"),
    ]


def test_a_damaged_base_does_not_hide_the_models(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.json("config.json", "base", quantization_config={"quant_method": "awq"})
    cut_short(house)

    problems = refused(house, monkeypatch)

    assert [(problem.where, problem.code) for problem in problems] == [
        ("base", "quantised"),
        ("expert", "damaged_file"),
    ]


def test_many_tensors_of_one_model_are_counted(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.weights(lambda tensors: [tensors.update({f"{key}.extra": torch.zeros(1)}) for key in list(tensors)])

    problems = refused(house, monkeypatch)

    assert len(problems) == 6
    assert problems[-1].what == "so it is with 15 more"


def test_what_does_not_make_a_merge_wrong_is_a_warning(house: House) -> None:
    house.json("config.json", eos_token_id=1, max_position_embeddings=512)
    (house.expert / "chat_template.jinja").write_text("{{ messages }}")

    def rename_special(content: dict[str, Any]) -> None:
        entry = next(item for item in content["added_tokens"] if item["content"] == SPECIAL[0])
        rename(content, SPECIAL[0], "<|start|>")
        entry["content"] = "<|start|>"

    house.tokens(rename_special)

    plan = make_plan(MergeSpec(base="base", models=("expert",)), house.inputs)

    assert list(plan.warnings) == [
        "expert: max_position_embeddings is 512, in base 256, which the result has as well",
        "expert: eos_token_id is 1, in base 2, which the result has as well",
        "expert: 1 special tokens have other names: '<|start|>' is '<|endoftext|>' in base; the result has base's",
        "expert: another chat template than base, whose the result has; see chat_template",
    ]


def test_a_refusal_loads_no_torch(house: House) -> None:
    cut_short(house)
    code = (
        "import sys, pickle; from modelworks.merge.plan import make_plan; from modelworks.merge.spec import MergeSpec\n"
        "try: make_plan(MergeSpec(base='base', models=('expert',)), pickle.load(sys.stdin.buffer))\n"
        "except Exception as error: print(error.problems[0].code, 'torch' in sys.modules, 'numpy' in sys.modules)"
    )
    import pickle

    told = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(house.inputs), capture_output=True, check=True
    )

    assert told.stdout.decode().split() == ["damaged_file", "False", "False"]

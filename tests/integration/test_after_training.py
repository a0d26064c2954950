"""What a training leaves beside its adapter: the whole model and a GGUF file, and both are the same network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from fakes import FakeJob
from logits import answer, read_logits
from modelworks.core.nouns import ArtifactKind
from modelworks.train.run import run
from modelworks.train.spec import TrainSpec
from modelworks.weights.export import write_file
from modelworks.weights.gguf import GgufFile, llama_name, unpermute
from modelworks.weights.gguf_checkpoint import as_checkpoint, open_weights
from modelworks.weights.gguf_export import write_gguf
from modelworks.weights.layout import inspect_model
from modelworks.weights.reader import Checkpoint
from reference import CLOSE, open_model
from shelf import adapter_at, conversations, model_at
from tiny import tiny_adapter, tiny_llama

ROWS = [(f"say {word}", f"{word} " * 3) for word in ("yes", "no", "so", "on")]


def tensors_of(gguf: Path) -> dict[str, torch.Tensor]:
    """By their names in transformers; its tokenizer, which has no merges, is not looked at."""
    with GgufFile(gguf) as file:
        return {llama_name(name): unpermute(name, file.read(name), 2, 1) for name in file.tensors}


@pytest.mark.parametrize("changes", [{"use_rslora": True}, {"use_dora": True}])
def test_a_training_leaves_the_whole_model_and_a_gguf_file_too(tmp_path: Path, changes: dict[str, bool]) -> None:
    tiny = model_at(tiny_llama(tmp_path / "tiny"))
    (tiny.path / "merge_report.json").write_text("{}")
    job = FakeJob(tmp_path, inputs={"tiny": tiny, "rows": conversations(tmp_path / "rows", ROWS, ROWS[:1])})
    spec = TrainSpec.model_validate(
        {"model": "tiny", "dataset": "rows", "name": "me/first", "max_steps": 4, "learning_rate": 1e-2, "merge": True}
        | {"max_length": 64, "device": "cpu", "export_gguf": "f16"}
        | changes
    )

    run(spec, job)

    adapter, merged, file = job.drafts
    assert [(draft.kind, draft.name) for draft in job.drafts] == [
        (ArtifactKind.ADAPTER, "me/first"),
        (ArtifactKind.MODEL, "me/first-merged"),
        (ArtifactKind.FILE, "me/first-gguf"),
    ]
    assert [parent.role for parent in merged.parents] == ["base", "data", "adapter"]
    assert merged.parents[2].id == adapter.facts["id"]
    assert file.facts == {"filename": "first-f16.gguf", "purpose": "gguf"}
    names = {path.name for path in merged.folder.iterdir()}
    assert {"config.json", "tokenizer.json", "chat_template.jinja", "README.md", "model.safetensors"} <= names
    assert "merge_report.json" not in names
    assert inspect_model(merged.folder)["dtype"] == "bfloat16"

    base = AutoModelForCausalLM.from_pretrained(tiny.path, dtype=torch.float32)
    whole = AutoModelForCausalLM.from_pretrained(merged.folder, dtype=torch.float32)
    # By PEFT: transformers' load_adapter leaves out the lengths that DoRA learns.
    base = PeftModel.from_pretrained(base, str(adapter.folder))
    ids = torch.tensor([[5, 77, 30, 120, 9]])
    with torch.inference_mode():
        # Rounded once to bfloat16: 8 bits of every weight.
        assert torch.allclose(base(ids).logits, whole(ids).logits, atol=0.05)
        # What is trained is served at once.
        engine = open_model(tiny.path)
        engine.adapters.add("first", adapter.folder)
        (served,) = read_logits(engine, [answer("asked", ids[0].tolist(), "first")], [[]])
        torch.testing.assert_close(served, base(ids).logits[:, -1], **CLOSE)
    with Checkpoint.open(merged.folder) as written:
        for name, read in tensors_of(file.folder / "first-f16.gguf").items():
            assert torch.allclose(read, written.read(name).float(), rtol=2**-10, atol=1e-7), name


def test_the_card_names_its_licence_parents_and_settings(tmp_path: Path) -> None:
    tiny = model_at(tiny_llama(tmp_path / "tiny"))
    (tiny.path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n")
    rows = conversations(tmp_path / "rows", ROWS, ROWS[:1])
    job = FakeJob(tmp_path, inputs={"tiny": tiny, "rows": rows})

    run(TrainSpec(model="tiny", dataset="rows", max_steps=1, max_length=64, device="cpu"), job)

    card = (job.drafts[0].folder / "README.md").read_text()
    assert card.startswith("---\nbase_model: tiny\ndatasets:\n- rows\nlibrary_name: peft\nlicense: apache-2.0\n")
    assert f"| data | dataset | rows | `{rows.digest}` |" in card
    assert '"learning_rate": 0.0002' in card
    assert "modelworks chat tiny-rows" in card
    assert "| train rows | 4 |" in card


def test_the_real_model_as_gguf_answers_the_same(smollm2: Path, tmp_path: Path) -> None:
    ids = torch.tensor([[1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198]])
    for dtype, error in (("f16", 0.0005), ("q8_0", 0.008)):
        write_gguf(smollm2, tmp_path / f"{dtype}.gguf", dtype, "smol")  # type: ignore[arg-type] # one of both
        read, written = open_weights(as_checkpoint(tmp_path / f"{dtype}.gguf", tmp_path)), Checkpoint.open(smollm2)
        assert read.tensors.keys() == written.tensors.keys()
        for name in written.tensors:
            exact = written.read(name).float()
            assert (read.read(name) - exact).norm() <= error * exact.norm(), name

    answers = [
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).generate(
            ids, max_new_tokens=6, do_sample=False
        )
        for folder, options in ((smollm2, {}), (tmp_path, {"gguf_file": "f16.gguf"}))
    ]
    assert torch.equal(*answers)


def test_an_adapter_is_exported_with_its_base(tmp_path: Path) -> None:
    tiny = model_at(tiny_llama(tmp_path / "tiny"))
    adapter = adapter_at(tiny_adapter(tmp_path / "one", tiny.path), tiny)
    told: list[tuple[int, int]] = []

    write_file(adapter, tiny, tmp_path / "one.gguf", "q8_0", lambda done, total: told.append((done, total)))

    assert told[-1][0] == told[-1][1] > 0
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    written = tensors_of(tmp_path / "one.gguf")
    with Checkpoint.open(tiny.path) as base:
        changed = [name for name in written if not torch.allclose(written[name], base.read(name).float(), atol=0.01)]
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "v_proj"}

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from modelworks.core.errors import Invalid
from modelworks.core.nouns import AnyArtifact
from modelworks.train import estimate as estimating
from modelworks.train import plan
from modelworks.train.estimate import Estimate, estimate
from modelworks.train.footprint import disk_bytes
from modelworks.train.plan import check
from modelworks.train.spec import TrainSpec
from shelf import conversations, model_at, preferences, texts
from tiny import tiny_llama

# In the tiny tokenizer each letter is a token.
ROWS = [("ab", "c" * length) for length in (4, 8, 60, 100)] * 3


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, AnyArtifact]:
    return {
        "tiny": model_at(tiny_llama(tmp_path / "tiny")),
        "rows": conversations(tmp_path / "rows", ROWS, ROWS[:1]),
        "pairs": preferences(tmp_path / "pairs", [("a", "bb", "c")] * 4),
    }


def told(inputs: dict[str, AnyArtifact], gflops: float | None = None, **asked: Any) -> Estimate:
    spec = TrainSpec.model_validate({"model": "tiny", "dataset": "rows", "device": "cpu", "dtype": "fp32"} | asked)
    return estimate(spec, inputs, measure=lambda _dtype: gflops)


def test_rows_tokens_and_steps_are_counted_as_the_training_will(inputs: dict[str, AnyArtifact]) -> None:
    found = told(inputs, max_length=64, per_device_train_batch_size=5, num_train_epochs=2)

    # <|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\n are 21 tokens, the answer's end one more.
    assert (found.longest_row, found.truncated_rows, found.masked_rows) == (64, 6, 0)
    assert found.tokens == 3 * (26 + 30 + 64 + 64)
    assert found.steps == 6  # 12 rows in batches of 5: 3 steps an epoch
    assert found.learning_rate == 2e-4
    assert found.notes[0] == "max_length 64: 6 of 12 rows lose their end"
    assert told(inputs, max_length=16).masked_rows == 12
    assert told(inputs, max_steps=7).steps == 7


def test_an_adapter_is_counted_by_the_layers_it_lies_on(inputs: dict[str, AnyArtifact]) -> None:
    # Two layers of 16 wide: q and o 16x16, k and v 8x16, gate and up 24x16, down 16x24.
    everywhere = 2 * (2 * 32 + 2 * 24 + 3 * 40)

    assert told(inputs, lora_r=4).trainable_parameters == 4 * everywhere
    assert told(inputs, lora_r=4, lora_target=("q_proj",)).trainable_parameters == 4 * 2 * 32
    assert told(inputs, tuning="full").trainable_parameters == told(inputs).parameters
    assert told(inputs, strategy="dpo", dataset="pairs").rows == 4


def test_memory_is_that_of_the_batches_that_will_be_drawn(inputs: dict[str, AnyArtifact]) -> None:
    alone = {"per_device_train_batch_size": 1}
    first = [told(inputs, **alone, max_steps=1, seed=seed).memory["activations"] for seed in range(24)]

    # The rows are of 26 to 122 tokens, and the epoch holds them all.
    assert min(first) < max(first) == told(inputs, **alone).memory["activations"]
    # A pair is computed with both its answers at once.
    assert told(inputs, strategy="dpo", dataset="pairs").memory["activations"] > 2 * 4 * min(first) / 26 * 20


def test_seconds_are_those_of_steps_and_measurements(inputs: dict[str, AnyArtifact]) -> None:
    def seconds(**asked: Any) -> float:
        found = told(inputs, 0.001, **{"per_device_train_batch_size": 12, "max_steps": 1} | asked).seconds
        assert found is not None
        return found

    a_step = seconds(max_steps=2) - seconds()
    assert a_step > 0
    assert seconds(max_steps=3) - seconds() == pytest.approx(2 * a_step, rel=0.01)
    assert seconds(max_steps=3, eval_steps=1) > seconds(max_steps=3)
    assert seconds(tuning="full", max_steps=2) - seconds(tuning="full") > a_step


def test_documents_are_counted_in_the_blocks_that_pretraining_joins(inputs: dict[str, AnyArtifact]) -> None:
    inputs["texts"] = texts(inputs["rows"].path.parent / "texts", ["abcdefg"] * 5)

    found = told(inputs, strategy="pretrain", dataset="texts", max_length=16, per_device_train_batch_size=1)

    # Five times seven letters and the end of text: two blocks of 16 and one of 8.
    assert (found.tokens, found.rows, found.steps) == (40, 3, 3)


def test_disk_is_checkpoints_and_what_is_published(inputs: dict[str, AnyArtifact]) -> None:
    spec = TrainSpec(model="tiny", dataset="rows", lora_r=4, dtype="fp32", save_total_limit=2, device="cpu")
    adapter = 4 * 2 * (2 * 32 + 2 * 24 + 3 * 40)
    model = inputs["tiny"]

    alone = disk_bytes(spec, model)  # type: ignore[arg-type] # a model
    with_file = disk_bytes(spec.model_copy(update={"export_gguf": "f16"}), model)  # type: ignore[arg-type] # a model

    assert alone == adapter * (4 + 8) * 3 + adapter * 4
    assert with_file == alone + 2 * told(inputs).parameters


def test_what_can_never_fit_is_refused_before_the_start(
    inputs: dict[str, AnyArtifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (plan, estimating):
        monkeypatch.setattr(module, "memory_bytes", lambda: 1 << 20)

    with pytest.raises(Invalid, match=r"take about 0\.5 GB") as caught:
        check(TrainSpec(model="tiny", dataset="rows", device="cpu"), inputs)

    assert caught.value.code == "out_of_memory"
    assert "out of memory" in told(inputs).notes[-1]


def test_torch_is_not_loaded() -> None:
    code = "import sys; import modelworks.app.estimating; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

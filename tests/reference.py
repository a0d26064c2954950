"""What transformers and PEFT compute of a tiny checkpoint, for the native engine to be held against."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from modelworks.serve.engine import EngineSpec
from modelworks.serve.native.model import LoadedModel, load

# float32 on both sides: what is left are sums in another order.
CLOSE: dict[str, Any] = {"atol": 2e-4, "rtol": 1e-4}


def open_model(folder: Path, **options: Any) -> LoadedModel:
    return load(EngineSpec(model_folder=str(folder), model_name="m", dtype="float32", max_sequences=8, **options))


def reference(folder: Path, tokens: Sequence[int], adapter: Path | None = None) -> torch.Tensor:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter is not None:
        network = PeftModel.from_pretrained(network, adapter)
    with torch.inference_mode():
        logits: torch.Tensor = network.eval()(torch.tensor([list(tokens)])).logits[0].float()
    return logits


def some_tokens(seed: int, count: int, vocab: int = 259) -> list[int]:
    return [random.Random(seed * 1000 + i).randrange(3, vocab) for i in range(count)]

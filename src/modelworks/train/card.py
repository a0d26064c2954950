"""The model card of a training: what it was made from and how, what it measured, and how to use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from modelworks.core.nouns import JsonObject, Parent
from modelworks.train.strategy import Settled, Setup
from modelworks.weights import card

_USE_ADAPTER = """```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "{name}")
```"""
_USE_MODEL = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = AutoModelForCausalLM.from_pretrained("{name}"), AutoTokenizer.from_pretrained("{name}")
```"""


def write_card(
    folder: Path, name: str, setup: Setup, parents: Sequence[Parent], metrics: Mapping[str, float], counts: JsonObject
) -> None:
    """Write README.md; says nothing of time and place, so that the same training gives the same folder."""
    spec, is_adapter = setup.spec, (folder / "adapter_config.json").is_file()
    front = {
        "base_model": setup.model.name,
        "library_name": "peft" if is_adapter else "transformers",
        "datasets": [setup.dataset.name],
        "tags": [*(["lora"] if spec.tuning == "lora" else []), spec.strategy, "modelworks"],
        **card.license_of(setup.model.path),
    }
    how = f"LoRA, rank {spec.lora_r}, alpha {spec.lora_alpha:g}" if spec.tuning == "lora" else "every weight"
    folded = "; the adapter is folded into its base" if spec.tuning == "lora" and not is_adapter else ""
    asked: dict[str, Any] = spec.model_dump(mode="json", exclude={"output_dir", "replace", "name"})
    asked |= {field.name: getattr(setup, field.name) for field in fields(Settled)}
    use = (_USE_ADAPTER if is_adapter else _USE_MODEL).format(base=setup.model.name, name=name)
    made = f"{setup.model.name} fine-tuned on {setup.dataset.name} with Modelworks (`{spec.strategy}`; {how}){folded}."
    lines = [
        "| | |",
        "|---|---|",
        *(f"| {key.replace('_', ' ')} | {value:,} |" for key, value in counts.items() if isinstance(value, int)),
        *(f"| {key.replace('_', ' ')} | {value:.4g} |" for key, value in metrics.items()),
        "",
        "## Use",
        "",
        f"`modelworks chat {name}`" + (f", or with PEFT on {setup.model.name}:" if is_adapter else ", or:"),
        "",
        use,
        "",
    ]
    card.write_card(folder, name, front, [made], parents, lines, ("Settings", asked))

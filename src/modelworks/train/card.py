"""The model card of a training: what it was made from and how, what it measured, and how to use it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from modelworks.core.nouns import JsonObject, Parent
from modelworks.train.strategy import Settled, Setup

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
        **license_of(setup.model.path),
    }
    how = f"LoRA, rank {spec.lora_r}, alpha {spec.lora_alpha:g}" if spec.tuning == "lora" else "every weight"
    folded = "; the adapter is folded into its base" if spec.tuning == "lora" and not is_adapter else ""
    asked: dict[str, Any] = spec.model_dump(mode="json", exclude={"output_dir", "replace", "name"})
    asked |= {field.name: getattr(setup, field.name) for field in fields(Settled)}
    use = (_USE_ADAPTER if is_adapter else _USE_MODEL).format(base=setup.model.name, name=name)
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=True).strip(),
        "---",
        "",
        f"# {name}",
        "",
        f"{setup.model.name} fine-tuned on {setup.dataset.name} with Modelworks (`{spec.strategy}`; {how}){folded}.",
        "",
        "| role | kind | name | sha256 |",
        "|---|---|---|---|",
        *(f"| {parent.role} | {parent.kind} | {parent.name} | `{parent.digest}` |" for parent in parents),
        "",
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
        "## Settings",
        "",
        "```json",
        json.dumps(asked, indent=2, sort_keys=True),
        "```",
    ]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def license_of(model: Path) -> dict[str, str]:
    """What the card or the config of a model says of its licence, in the words of a card's head."""
    card = model / "README.md"
    told: object = None
    if card.is_file():
        head = card.read_text(encoding="utf-8", errors="replace").split("---\n")
        try:
            told = yaml.safe_load(head[1]) if len(head) > 2 and not head[0].strip() else None
        except yaml.YAMLError:
            told = None
    if not isinstance(told, dict) or "license" not in told:
        told = json.loads((model / "config.json").read_text(encoding="utf-8"))
    keys = ("license", "license_name", "license_link")
    return {key: str(told[key]) for key in keys if isinstance(told, dict) and isinstance(told.get(key), str)}

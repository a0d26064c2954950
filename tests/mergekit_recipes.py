"""Merges by mergekit's YAML, and what mergekit 0.1.5 makes of them; run with the path of `mergekit-yaml` to record it.

The models' weights come from whole numbers, so that they are the same on every machine, and no two of them are equal.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tiny import tiny_llama

MODELS = ("base", "e1", "e2", "e3")
_EXPERTS = """
base_model: {base}
models:
- model: {base}
- model: {e1}
  parameters: {weight: 0.5, density: 0.6}
- model: {e2}
  parameters: {weight: [0, 0.3, 1e-0], density: 0.4}
- model: {e3}
  parameters:
    weight: [{filter: mlp, value: 0.7}, {filter: self_attn, value: [0.1, 0.9]}, {value: 0.2}]
    density: [0.9, 0.3]
"""
RECIPES = {
    "linear": """
merge_method: linear
models:
- {model: {e1}, parameters: {weight: 0.5}}
- {model: {e2}, parameters: {weight: {filter: mlp, value: [0, 1, 0.5]}}}
- {model: {e3}}
parameters: {weight: 0.25}
""",
    "linear of a base": """
merge_method: linear
base_model: {base}
models: [{model: {e1}}, {model: {e2}}]
parameters: {weight: 0.75, normalize: false}
""",
    "slerp": """
merge_method: slerp
base_model: {e1}
slices:
- sources: [{model: {e2}, layer_range: [0, 4]}, {model: {e1}, layer_range: [0, 4]}]
parameters:
  t: [{filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}, {filter: mlp, value: [1, 0.3, 0]}, {value: 0.4}]
""",
    "nuslerp": """
merge_method: nuslerp
base_model: {base}
models: [{model: {e1}, parameters: {weight: 0.5}}, {model: {e2}, parameters: {weight: [0.3, 0.1]}}]
parameters: {nuslerp_flatten: false}
""",
    "task_arithmetic": "merge_method: task_arithmetic\nparameters: {lambda: 0.8}" + _EXPERTS,
    "ties": "merge_method: ties\nparameters: {int8_mask: true}" + _EXPERTS,
    "ties not normalized": "merge_method: ties\nparameters: {normalize: false, lambda: 1.1}" + _EXPERTS,
    "breadcrumbs": "merge_method: breadcrumbs_ties\nparameters: {gamma: 0.05}" + _EXPERTS,
    "model_stock": """
merge_method: model_stock
base_model: {base}
models: [{model: {e1}}, {model: {e2}}, {model: {e3}}]
""",
    "sce": """
merge_method: sce
base_model: {base}
models: [{model: {e1}}, {model: {e2}}, {model: {e3}}]
parameters: {select_topk: 0.4}
""",
    "passthrough": """
merge_method: passthrough
slices:
- sources: [{model: {e1}, layer_range: [0, 3]}]
- sources: [{model: {e2}, layer_range: [1, 4], parameters: {scale: [{filter: o_proj, value: 0.0}, {value: 1.0}]}}]
""",
    "slices": """
merge_method: task_arithmetic
base_model: {base}
slices:
- sources:
  - {model: {base}, layer_range: [0, 2]}
  - {model: {e1}, layer_range: [0, 2], parameters: {weight: [0, 1]}}
  - {model: {e2}, layer_range: [1, 3]}
- sources: [{model: {base}, layer_range: [2, 4]}, {model: {e3}, layer_range: [0, 2]}]
  parameters: {weight: 1, lambda: 2}
parameters: {weight: 0.5, lambda: 0.5}
""",
}


def recipe(name: str, folder: Path) -> str:
    """The YAML of a recipe for models in `folder`, computed and written in float32."""
    text = RECIPES[name]
    for model in MODELS:
        text = text.replace(f"{{{model}}}", str(folder / model))
    return f"{text}\ndtype: float32\n"


def write_models(folder: Path) -> None:
    for seed, name in enumerate(MODELS):
        made = tiny_llama(folder / name, num_hidden_layers=4, tie_word_embeddings=False, dtype="float32")
        with safe_open(made / "model.safetensors", "pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118  no mapping
        tensors = {
            key: _values(shape, number, 0) * 0.1 + (_values(shape, number, seed) * 0.01 if seed else 0)
            for number, (key, shape) in enumerate(sorted(shapes.items()))
        }
        save_file(tensors, made / "model.safetensors", metadata={"format": "pt"})


def _values(shape: tuple[int, ...], number: int, seed: int) -> torch.Tensor:
    """Numbers from -1 to 1 that look random: each place of a tensor has its own."""
    places = torch.arange(torch.Size(shape).numel(), dtype=torch.int64)
    prime = 16777213  # and the fifth power of numbers below it is one to one
    mixed = (places * 265443 + number * 40503 + seed * 7919 + 12345) % prime
    mixed = mixed * mixed % prime * mixed % prime * mixed % prime * mixed % prime
    return (mixed.to(torch.float64) / 8388606.5 - 1).to(torch.float32).reshape(shape)


def summed(folder: Path) -> tuple[float, float]:
    """The sum of all values, and their sum weighted by place: equal tensors have equal sums."""
    plain = placed = 0.0
    with safe_open(folder / "model.safetensors", "pt") as file:
        for number, key in enumerate(sorted(file.keys())):
            values = file.get_tensor(key).double().flatten()
            plain += float(values.abs().sum())
            placed += float((values * _values((len(values),), number, 99).double()).sum())
    return plain, placed


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_models(folder)
        for name in RECIPES:
            (folder / "recipe.yml").write_text(recipe(name, folder))
            out = folder / name.replace(" ", "-")
            subprocess.run([sys.argv[1], folder / "recipe.yml", out, "--quiet"], check=True, capture_output=True)
            print(f'    "{name}": {summed(out)},')  # noqa: T201  what the script is for


if __name__ == "__main__":
    main()

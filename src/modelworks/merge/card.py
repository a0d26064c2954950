"""The model card of a merge: recipe, parents and hashes, so that it can be made again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from modelworks.core.nouns import JsonObject, Parent
from modelworks.merge.plan import Plan
from modelworks.weights import card


def write_card(
    folder: Path, name: str, plan: Plan, parents: Sequence[Parent], recipe: JsonObject, report: Sequence[str] = ()
) -> None:
    """Write README.md; says nothing of time and place, so that the same merge gives the same folder."""
    front = {"base_model": [parent.name for parent in parents], "library_name": "transformers", "tags": ["merge"]}
    method = plan.method
    paper = f" ([{method.paper}](https://arxiv.org/abs/{method.paper.removeprefix('arXiv:')}))" if method.paper else ""
    how = {"float32": "float32\nand rounded once", "bfloat16": "bfloat16\nand rounded at every step"}[method.precision]
    how_many = f"{sum(step.merged for step in plan.steps)} of {len(plan.steps)} tensors"
    rest = "Tokenizer, chat template and generation settings come from the first model below."
    if method.gives_adapter:
        front |= {"base_model": plan.frame.name, "library_name": "peft", "tags": ["lora", "merge"]}
        how_many = f"an adapter of {sum(step.merged for step in plan.steps)} matrices of {plan.frame.name}"
        rest = "Scales are folded into its factors: every matrix changes by B A."
    how_merged = f"Merged with Modelworks by `{method.name}`{paper}: {how_many}, computed in {how}."
    card.write_card(folder, name, front, [how_merged, rest], parents, report, ("Recipe", recipe))

"""For every merge method: parameters to try its laws with, and the laws it does not promise."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Law = Literal["equal experts", "one expert", "lambda", "order", "weight", "nothing learnt"]
SUMS = "adds up: equal experts go further than one"
GIVEN_BACK: tuple[Law, ...] = ("equal experts", "one expert")


@dataclass(frozen=True)
class Recipe:
    """How to try a method.

    Attributes:
        plain: parameters by which it trims, scales and shifts nothing; of a list, one a model.
        busy: parameters by which it does all it can.
        count: how many experts.
        chance: whether the place of an expert decides what chance does to it with busy parameters.
        broken: laws that it does not promise, and why.
        exclude: patterns of tensors that it refuses.
    """

    plain: dict[str, Any] = field(default_factory=dict)
    busy: dict[str, Any] = field(default_factory=dict)
    count: int = 3
    chance: bool = False
    broken: dict[Law, str] = field(default_factory=dict)
    exclude: tuple[str, ...] = ()


# Nobody's network has them, so that their place among the draws is unknown.
NO_PARAMETERS = ("odd",)

RECIPES: dict[str, Recipe] = {
    "arcee_fusion": Recipe(count=1, broken=dict.fromkeys(GIVEN_BACK, "keeps only what stands out")),
    "average": Recipe(),
    "average_merging": Recipe(),
    "breadcrumbs": Recipe(
        {"gamma": 0, "normalize": True}, {"gamma": 0.1, "density": 0.4, "lambda": 0.7, "rescale": True}
    ),
    "breadcrumbs_ties": Recipe({"gamma": 0, "normalize": True}, {"gamma": 0.1, "density": 0.4, "lambda": 0.7}),
    "consensus": Recipe(busy={"lambda_mask": 0.6, "lambda": 0.7}, broken={"equal experts": SUMS}),
    "dare_linear": Recipe({"normalize": True}, {"density": 0.3, "rescale_norm": "l1"}, chance=True),
    "dare_ties": Recipe({"normalize": True}, {"density": 0.3, "lambda": 0.7, "rescale": False}, chance=True),
    "della": Recipe({"epsilon": 0}, {"density": 0.4, "epsilon": 0.2, "lambda": 0.7}, chance=True),
    "della_linear": Recipe({"epsilon": 0, "normalize": True}, {"density": 0.4, "epsilon": 0.2}, chance=True),
    "extrapolate": Recipe({"alpha": 1}, count=1),
    "iso_c": Recipe(broken=dict.fromkeys(GIVEN_BACK, "evens out how strong the directions are")),
    "karcher": Recipe(),
    "linear": Recipe(),
    "magmax": Recipe(busy={"lambda": 0.7}),
    "mask_merging": Recipe(
        {"weight_mask_rates": [0.0] * 3},
        {"weight_mask_rates": [0.2, 0.5, 0.9], "mask_apply_method": "task_arithmetic"},
        chance=True,
        exclude=NO_PARAMETERS,
    ),
    "model_stock": Recipe(busy={"filter_wise": True}),
    "multislerp": Recipe(),
    "nearswap": Recipe({"t": 100}, {"t": 0.05}, count=1),
    "nuslerp": Recipe(busy={"nuslerp_flatten": False, "nuslerp_row_wise": True}, count=2),
    "passthrough": Recipe(busy={"scale": 0.7}, count=1, broken={"nothing learnt": "scales the base as well"}),
    "pcb": Recipe(
        busy={"density": 0.3, "lambda": 0.7},
        broken=dict.fromkeys(GIVEN_BACK, "outliers count for less, and the last change loses"),
    ),
    "ram": Recipe(busy={"epsilon": 0.04}),
    "ramplus_tl": Recipe(busy={"epsilon": 0.04}),
    "sce": Recipe(busy={"select_topk": 0.6}),
    "slerp": Recipe(count=2),
    "task_arithmetic": Recipe({"normalize": True}),
    "task_arithmetic_bf16": Recipe(broken={"equal experts": SUMS}),
    "ties": Recipe(busy={"density": 0.3, "lambda": 0.7}),
    "ties_merging": Recipe({"param_value_mask_rate": 0}, {"param_value_mask_rate": 0.7}),
    "ties_merging_dare": Recipe({"param_value_mask_rate": 1e-9}, {"param_value_mask_rate": 0.7}),
    "tsv_m": Recipe(broken={"equal experts": "keeps one direction in M of each"}),
}
# These merge adapters alone, or give one: their own tests know their laws.
OF_ADAPTERS = {"lora_add", "lora_compress", "lora_extract", "lora_fold"}

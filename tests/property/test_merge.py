"""Laws of merging, of every method, on models of a few kilobytes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from artifacts import as_adapter, as_model
from fakes import FakeJob
from modelworks.core.nouns import AnyArtifact
from modelworks.merge.engine import Pace, merge
from modelworks.merge.memory import MemorySink
from modelworks.merge.method import methods
from modelworks.merge.plan import make_plan
from modelworks.merge.spec import MergeSpec
from recipes import OF_ADAPTERS, RECIPES, Law
from tiny import tiny_adapter, tiny_llama

Tensors = dict[str, torch.Tensor]
# Tensors that no network has but a merge must cope with: of many pieces, of no elements, of one.
ODD = {"odd.long": (1500,), "odd.empty": (0,), "odd.empty_rows": (0, 16), "odd.one": (1,), "odd.number": ()}
EXPERTS = ("one", "two", "three")
ONE_BY_ONE = Pace(workers=1)


@dataclass(frozen=True)
class Shelf:
    """A base and three experts in small multiples of 1/32, whose sums are exact; a float32 expert; an adapter."""

    inputs: dict[str, AnyArtifact]
    job: FakeJob

    def merged(
        self, method: str, models: tuple[str, ...], params: dict[str, Any], pace: Pace = ONE_BY_ONE, **spec: Any
    ) -> Tensors:
        params = {key: value[: len(models)] if isinstance(value, list) else value for key, value in params.items()}
        body = {"method": method, "base": "base", "models": models, "params": params, **spec}
        plan = make_plan(
            MergeSpec.model_validate(body | {"exclude_param_names_regex": RECIPES[method].exclude}), self.inputs
        )
        sink = MemorySink([step.output for step in plan.steps])
        merge(plan, sink, self.job, pace)
        return sink.tensors()

    def stored(self, name: str) -> Tensors:
        tensors: Tensors = load_file(self.inputs[name].path / "model.safetensors")
        return tensors


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    root = tmp_path_factory.mktemp("models")
    base_folder = tiny_llama(root / "base", 0, tie_word_embeddings=False, dtype="float32")
    tiny_adapter(root / "lora", base_folder, targets=("embed_tokens", "up_proj", "o_proj"))
    models = {}
    for seed, name in enumerate(("base", *EXPERTS, "full")):
        folder = base_folder if name == "base" else shutil.copytree(base_folder, root / name)
        tiny_llama(folder, seed, tie_word_embeddings=False, dtype="float32")
        dice = torch.Generator().manual_seed(seed)
        values = load_file(folder / "model.safetensors")
        values |= {odd: torch.randn(shape, generator=dice) / 8 for odd, shape in ODD.items()}
        if name != "full":
            values = {key: (value * 32).round() / 32 for key, value in values.items()}
        save_file(values, folder / "model.safetensors", metadata={"format": "pt"})
        models[name] = as_model(folder, name)
    return Shelf({**models, "lora": as_adapter(root / "lora", "lora", models["base"])}, FakeJob(root / "job"))


def same(found: Tensors, expected: Tensors, exclude: tuple[str, ...] = ()) -> None:
    """But for the rounding of a few operations in float32; in bfloat16 there is none to be seen."""
    for name, values in found.items():
        if not name.startswith(exclude or "?"):
            torch.testing.assert_close(values.float(), expected[name].float(), rtol=1e-5, atol=2e-6, msg=name)


def equal_experts_give_themselves(shelf: Shelf, name: str) -> None:
    recipe = RECIPES[name]

    found = shelf.merged(name, ("one",) * recipe.count, recipe.plain)

    same(found, shelf.stored("one"), recipe.exclude)


def one_expert_gives_itself(shelf: Shelf, name: str) -> None:
    recipe = RECIPES[name]

    found = shelf.merged(name, ("one",), recipe.plain)

    same(found, shelf.stored("one"), recipe.exclude)


def lambda_zero_gives_the_base(shelf: Shelf, name: str) -> None:
    recipe = RECIPES[name]

    found = shelf.merged(name, EXPERTS[: recipe.count], recipe.busy | {str(lambda_of(name)): 0})

    for tensor, values in shelf.stored("base").items():
        assert torch.equal(found[tensor].float(), values), tensor


def the_order_of_experts_changes_nothing(shelf: Shelf, name: str) -> None:
    recipe = RECIPES[name]
    models = EXPERTS[: recipe.count]
    params = recipe.plain if recipe.chance else recipe.busy

    found = shelf.merged(name, models, params)

    same(shelf.merged(name, models[::-1], params), found)
    same(shelf.merged(name, models[1:] + models[:1], params), found)


def a_weight_of_zero_takes_a_model_out(shelf: Shelf, name: str) -> None:
    recipe = RECIPES[name]
    left = EXPERTS[: max(recipe.count - 1, 1)]

    found = shelf.merged(name, EXPERTS[: len(left) + 1], recipe.busy, weights=[*(1.0 for _ in left), 0.0])

    same(found, shelf.stored("one") if len(left) < fewest(name) else shelf.merged(name, left, recipe.busy))


def experts_that_learnt_nothing_give_the_base(shelf: Shelf, name: str) -> None:
    recipe = RECIPES[name]

    found = shelf.merged(name, ("base",) * recipe.count, recipe.busy)

    same(found, shelf.stored("base"))


def fewest(name: str) -> int:
    return methods()[name].models[0]


def lambda_of(name: str) -> str | None:
    known = {field.alias or key for key, field in methods()[name].params_type.model_fields.items()}
    return next((key for key in ("lambda", "scaling_coefficient") if key in known), None)


# Each law, and the methods of which it says something.
LAWS: dict[Law, tuple[Callable[[Shelf, str], None], Callable[[str], bool]]] = {
    "equal experts": (equal_experts_give_themselves, lambda _name: True),
    "one expert": (one_expert_gives_itself, lambda name: fewest(name) == 1),
    "lambda": (lambda_zero_gives_the_base, lambda name: lambda_of(name) is not None),
    "order": (the_order_of_experts_changes_nothing, lambda name: methods()[name].models[1] != 1),
    "weight": (a_weight_of_zero_takes_a_model_out, lambda name: methods()[name].takes_weights),
    "nothing learnt": (experts_that_learnt_nothing_give_the_base, lambda _name: True),
}
OF_MODELS = sorted(RECIPES.keys() & methods().keys())


def test_every_method_has_its_recipe() -> None:
    of_adapters = {name for name, method in methods().items() if method.gives_adapter or method.adapters_only}

    assert of_adapters == OF_ADAPTERS
    assert methods().keys() - OF_ADAPTERS == RECIPES.keys()


@pytest.mark.parametrize(("law", "name"), [(law, name) for law in LAWS for name in OF_MODELS if LAWS[law][1](name)])
def test_a_method_keeps_the_laws_that_it_promises_and_only_those(shelf: Shelf, law: Law, name: str) -> None:
    if law in RECIPES[name].broken:
        with pytest.raises(AssertionError):
            LAWS[law][0](shelf, name)
    else:
        LAWS[law][0](shelf, name)


@pytest.mark.parametrize("name", OF_MODELS)
@settings(max_examples=4, deadline=None)
@given(chunk=st.integers(3, 6000), workers=st.integers(1, 4))
def test_the_same_bytes_come_out_whatever_the_pieces_and_workers(
    shelf: Shelf, name: str, chunk: int, workers: int
) -> None:
    recipe = RECIPES[name]
    models = ("lora", "full", "one")[: recipe.count]
    whole = shelf.merged(name, models, recipe.busy)

    pieces = shelf.merged(name, models, recipe.busy, Pace(workers=workers, chunk_elements=chunk))

    for tensor, values in whole.items():
        bits = (each.contiguous().view(-1).view(torch.uint8) for each in (values, pieces[tensor]))
        assert torch.equal(*bits), tensor


def test_ties_that_trims_nothing_of_one_expert_is_task_arithmetic(shelf: Shelf) -> None:
    ties = shelf.merged("ties", ("full",), {"density": 1, "lambda": 0.3})

    arithmetic = shelf.merged("task_arithmetic", ("full",), {str(lambda_of("task_arithmetic")): 0.3})

    for name, values in arithmetic.items():
        assert torch.equal(ties[name], values), name

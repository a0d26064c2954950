"""Other weights between two answers, in the computing loop itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from modelworks.core.generation import Failed, Finished, GenerateRequest, Token
from modelworks.core.nouns import JsonObject
from modelworks.serve import wire
from modelworks.serve.engine import EngineSpec, EngineStats
from modelworks.serve.native.loop import Loop
from modelworks.serve.native.model import load
from modelworks.serve.native.runner import Runner
from modelworks.serve.wire import AskStats, Cancel, Remade, Remake, Report
from tiny import tiny_llama


class Bench:
    """A loop over one checkpoint whose recipes name another; what it tells, in order."""

    def __init__(self, folder: Path, **config: object) -> None:
        self.folders = {name: tiny_llama(folder / name, seed, **config) for seed, name in enumerate(("old", "new"))}
        spec = EngineSpec(
            model_folder=str(self.folders["old"]), model_name="m", dtype="float32", kv_cache_bytes=1 << 20
        )
        self.model = load(spec)
        self.told: list[tuple[str, Report]] = []
        self.loop = Loop(self.model, self.tell, 4, self.make)

    def tell(self, reports: Sequence[tuple[str, Report]]) -> None:
        self.told += reports

    def make(self, recipe: JsonObject) -> tuple[dict[str, Tensor], JsonObject]:
        tensors = load_file(self.folders[str(recipe["of"])] / "model.safetensors")
        if recipe.get("damaged"):
            del tensors["model.layers.1.mlp.up_proj.weight"]
        return tensors, {"made": recipe["of"]}

    def ask(self, id_: str, max_tokens: int = 12) -> None:
        request = GenerateRequest(id=id_, model="m", prompt="Once", max_tokens=max_tokens, temperature=0)
        self.loop.put(self.model.make_sequence(request, None))

    def run_until(self, id_: str) -> None:
        while not any(name == id_ and not isinstance(report, Token) for name, report in self.told):
            self.loop.turn()

    def text(self, id_: str) -> str:
        return "".join(report.text for name, report in self.told if name == id_ and isinstance(report, Token))

    def ends(self) -> list[tuple[str, str]]:
        return [(name, type(report).__name__) for name, report in self.told if not isinstance(report, Token)]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_weights_put_in_compute_as_those_of_a_checkpoint(tmp_path: Path, tied: bool, biased: bool) -> None:
    bench = Bench(tmp_path, tie_word_embeddings=tied, attention_bias=biased)
    expected = load(EngineSpec(model_folder=str(bench.folders["new"]), model_name="m", dtype="float32"))

    bench.loop.put(Remake("change", {"of": "new"}))
    bench.run_until("change")

    assert bench.told == [("change", Remade({"made": "new"}))]
    assert isinstance(bench.model.runner, Runner)
    assert isinstance(expected.runner, Runner)
    ours, theirs = bench.model.runner._weights, expected.runner._weights
    x = torch.randn(3, 16)
    assert torch.equal(ours.embedding, theirs.embedding)
    assert torch.equal(ours.head(x), theirs.head(x))
    for one, other in zip(ours.layers, theirs.layers, strict=True):
        assert torch.equal(one.mlp_norm, other.mlp_norm)
        assert torch.equal(one.linear["qkv"](x), other.linear["qkv"](x))


def test_what_is_asked_before_ends_first_and_what_is_asked_after_waits(tmp_path: Path) -> None:
    bench = Bench(tmp_path, tie_word_embeddings=False)
    bench.ask("alone")
    bench.run_until("alone")
    bench.ask("before")
    bench.loop.turn()

    bench.loop.put(Remake("change", {"of": "new"}))
    for name in ("after", "cancelled"):
        bench.ask(name)
    bench.loop.put(Remake("back", {"of": "old"}))
    bench.ask("last")
    bench.loop.put(Cancel("cancelled"))
    bench.loop.put(AskStats("stats"))
    bench.run_until("last")

    # The two that wait are told of, the cancelled one is not.
    stats = next(report for _, report in bench.told if isinstance(report, EngineStats))
    assert (stats.running, stats.waiting, stats.aborted) == (1, 2, 1)
    assert bench.ends()[1:] == [
        ("cancelled", "Finished"), ("stats", "EngineStats"), ("before", "Finished"), ("change", "Remade"),
        ("after", "Finished"), ("back", "Remade"), ("last", "Finished"),
    ]  # fmt: skip
    assert bench.text("before") == bench.text("last") == bench.text("alone") != bench.text("after")


def test_weights_that_are_not_whole_change_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.ask("before")
    bench.run_until("before")

    bench.loop.put(Remake("change", {"of": "new", "damaged": True}))
    bench.ask("after")
    bench.run_until("after")

    failed = next(report for name, report in bench.told if name == "change")
    assert isinstance(failed, Failed)
    assert "up_proj.weight is missing" in failed.message
    assert bench.text("after") == bench.text("before")


def test_an_engine_of_a_checkpoint_makes_nothing_from_a_recipe(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.loop.make = None

    bench.loop.put(Remake("change", {"of": "new"}))
    bench.run_until("change")

    ((_, failed),) = bench.told
    assert isinstance(failed, Failed)
    assert failed.code == "unsupported"


def test_an_order_and_its_answer_are_one_line_each() -> None:
    order = Remake("1", {"spec": {"weights": [0.5, None]}, "inputs": {}})
    told = Remade({"cosines": {"a / b": -0.25}})

    assert wire.read_order(wire.write_order(order)) == order
    reports: list[tuple[str, wire.Report]] = [("1", told), ("2", Finished("stop", 1, 2))]
    assert wire.read_reports(wire.write_reports(reports)) == reports

"""The spec of a kind of job by itself: a command needs one of them, and all of them take longer to import."""

from __future__ import annotations

from importlib import import_module

from modelworks.core.spec import Spec

_PLACES = {
    "train": "train.spec.TrainSpec", "sweep": "search.sweep.SweepSpec", "merge": "merge.spec.MergeSpec",
    "search": "search.spec.SearchSpec", "evaluate": "evaluate.spec.EvaluateSpec", "export": "weights.export.ExportSpec",
    "pull": "weights.pull.PullSpec",
}  # fmt: skip


def spec_of(kind: str) -> type[Spec]:
    module, _, name = _PLACES[kind].rpartition(".")
    found: type[Spec] = getattr(import_module(f"modelworks.{module}"), name)
    return found

"""The spec of a kind of job by itself: a command needs one of them, and all of them take longer to import."""

from __future__ import annotations

import pkgutil

from modelworks.core.spec import Spec

_PLACES = {
    "train": "train.spec.TrainSpec", "sweep": "search.sweep.SweepSpec", "merge": "merge.spec.MergeSpec",
    "search": "search.spec.SearchSpec", "evaluate": "evaluate.spec.EvaluateSpec", "export": "weights.export.ExportSpec",
    "pull": "weights.pull.PullSpec",
}  # fmt: skip


def spec_of(kind: str) -> type[Spec]:
    found: type[Spec] = pkgutil.resolve_name(f"modelworks.{_PLACES[kind]}")
    return found

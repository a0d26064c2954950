"""Merges of folders into a folder: no server, no job, and no workspace is needed."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from modelworks.app.folders import find_inputs, workspace
from modelworks.core.collecting import without_collecting
from modelworks.core.config import Settings
from modelworks.core.errors import Cancelled, Conflict, Invalid, Problem
from modelworks.core.nouns import JsonObject
from modelworks.core.spec import parse_spec
from modelworks.merge.engine import Pace
from modelworks.merge.estimate import Estimate, estimate
from modelworks.merge.fit import device_of
from modelworks.merge.folder import JOURNAL, end_journal, merge_into
from modelworks.merge.mergekit import is_mergekit, translate
from modelworks.merge.pieces import needs_torch
from modelworks.merge.plan import Plan, make_plan
from modelworks.merge.room import check_memory
from modelworks.merge.run import parents_of
from modelworks.merge.spec import MergeSpec
from modelworks.merge.spotcheck import spot_check
from modelworks.store.files import sync, sync_tree
from modelworks.weights.writer import check_space

Progress = Callable[[JsonObject], None]


@dataclass(frozen=True)
class FolderMerge:
    """A merge that was found sound by headers alone."""

    spec: MergeSpec
    plan: Plan
    estimate: Estimate


def read_merge(body: Mapping[str, Any]) -> tuple[JsonObject, tuple[str, ...]]:
    """A MergeSpec's body, of ours or of mergekit's file, and what of the file has no effect."""
    if not is_mergekit(body):
        return dict(body), ()
    found = translate(body)
    return found.body, found.notes


def plan_folders(body: Mapping[str, Any], settings: Settings, workers: int = 0) -> FolderMerge:
    """Check everything, and say what a merge of folders (or of names in the workspace) would do.

    Raises:
        Invalid: with one Problem for each thing that is wrong.
        NotFound: likewise, for names that mean nothing.
    """
    told, notes = read_merge(body)
    spec = parse_spec(MergeSpec, told, where="merge")
    inputs, doubts = find_inputs(spec.names, _laid_on(spec), workspace(settings))
    plan = make_plan(spec, inputs)
    wanted = estimate(plan, workers, spec.device, (*notes, *doubts))
    check_memory(wanted)
    return FolderMerge(spec, plan, wanted)


def merge_folders(
    merge: FolderMerge, out: Path, progress: Progress, stopped: Callable[[], bool], *, workers: int, overwrite: bool
) -> JsonObject:
    """Merge into OUT, which appears when it is whole; until then there is OUT.partial, in which a killed merge goes on.

    Raises:
        Conflict: OUT is there, and is not to be overwritten.
        OutOfSpace: the disk cannot hold the result.
        Cancelled: `stopped` says so; nothing is left behind.
    """
    started = time.monotonic()
    out = out.expanduser().absolute()
    partial = out.with_name(f"{out.name}.partial")
    _check_place(out, partial, merge, overwrite=overwrite)
    device = device_of(merge.spec.device)
    if needs_torch(merge.plan, device):
        _import_torch(whole=merge.plan.method.prepare_model is not None)
    pace = Pace(device, workers=workers, report=merge.spec.report)
    recipe: JsonObject = {"kind": "merge", "spec": merge.spec.model_dump(mode="json", exclude_defaults=True)}
    watch = _Watch(progress, stopped)
    try:
        doubts = spot_check(merge.plan, watch, merge.spec.strict)
        parents = parents_of(merge.spec, merge.plan)
        findings = merge_into(partial, merge.plan, watch, pace, out.name, parents, recipe, keep_journal=True)
    except Cancelled:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _publish(partial, out)
    return {
        "out": str(out),
        "method": merge.plan.method.name,
        "tensors": len(merge.plan.steps),
        "tensors_merged": sum(step.merged for step in merge.plan.steps),
        "bytes": merge.plan.size_bytes,
        "seconds": round(time.monotonic() - started, 3),
        **findings.as_json(),
        "doubts": [*doubts],
    }


class _Watch:
    def __init__(self, progress: Progress, stopped: Callable[[], bool]) -> None:
        self._tell, self._stopped = progress, stopped
        self._started = time.monotonic()

    def check(self) -> None:
        if self._stopped():
            raise Cancelled

    def progress(self, done: float, total: float, unit: str, **facts: str | float) -> None:
        self.check()
        passed = time.monotonic() - self._started
        left: JsonObject = {"eta_seconds": round(passed * (total - done) / done, 1)} if done else {}
        self._tell({"done": done, "total": total, "unit": unit, **left, **facts})


def _import_torch(*, whole: bool) -> None:
    """Import torch for this process: that takes longer than a small merge.

    Args:
        whole: with what describes its operators to compilers and on the meta device, a third of the import; a method
            that asks for the network itself needs that.
    """
    if not whole and "torch" not in sys.modules:
        sys.modules["torch._meta_registrations"] = ModuleType("torch._meta_registrations")
    with without_collecting():
        import torch  # noqa: F401  for what imports it later


def _laid_on(spec: MergeSpec) -> dict[str, str]:
    """For what may be an adapter, the model that it is laid upon."""
    pairs = [name.partition("+") for name in spec.models]
    return {second or first: first if second else spec.base or "" for first, _, second in pairs}


def _check_place(out: Path, partial: Path, merge: FolderMerge, *, overwrite: bool) -> None:
    problems = [
        Problem(str(out), f"lies in {name} or holds it, which is merged", "choose another folder with --out")
        for folder, name in _folders(merge).items()
        if out.resolve().is_relative_to(folder) or folder.is_relative_to(out.resolve())
    ]
    if problems:
        raise Invalid(f"--out {'; '.join(map(str, problems))}", problems=tuple(problems))
    before = _replaced(out)
    if before.is_dir() and not out.exists():
        before.rename(out)  # a run was killed between the two renames of `_publish`
    if out.is_symlink() or out.is_file() or (out.is_dir() and any(out.iterdir())):
        ours = out.is_dir() and any((out / name).is_file() for name in ("config.json", "adapter_config.json"))
        if not overwrite or not ours:
            remedy = "say --overwrite" if ours else "it is no model's folder, so it is never overwritten"
            raise Conflict(f"{out} exists already; choose another folder, or {remedy}")
    if partial.exists() and not (partial / JOURNAL).is_file():
        raise Conflict(f"{partial} exists, and no merge can go on in it; remove it, or choose another --out")
    check_space(partial, merge.estimate.bytes_written)
    out.parent.mkdir(parents=True, exist_ok=True)


def _folders(merge: FolderMerge) -> dict[Path, str]:
    """The names of all that is merged, by folder."""
    experts = (item for expert in merge.plan.experts for item in (expert.model, expert.artifact))
    return {item.path.resolve(): item.name for item in (merge.plan.frame, *experts)}


def _replaced(out: Path) -> Path:
    return out.with_name(f"{out.name}.replaced")


def _publish(partial: Path, out: Path) -> None:
    """Put the result, all of it on the disk, in its place by one rename; what it replaces is there until then."""
    sync_tree(partial)
    before = _replaced(out)
    if out.is_dir() and any(out.iterdir()):
        shutil.rmtree(before, ignore_errors=True)
        out.rename(before)
    partial.rename(out)
    end_journal(out)
    sync(out.parent)
    shutil.rmtree(before, ignore_errors=True)

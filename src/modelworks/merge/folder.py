"""A merge into a Hugging Face folder: weights, config, tokenizer and card, resumable until it is whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from modelworks.core.nouns import JsonObject, Parent
from modelworks.merge.adapters import merge_adapters
from modelworks.merge.card import write_card
from modelworks.merge.engine import Pace, merge
from modelworks.merge.findings import Findings
from modelworks.merge.layers import restacked
from modelworks.merge.pieces import Watch
from modelworks.merge.plan import Plan
from modelworks.merge.report import write_report
from modelworks.merge.tokenizer_files import write_tokenizer
from modelworks.weights.companions import copy_companions
from modelworks.weights.safety import read_object
from modelworks.weights.writer import CheckpointWriter

JOURNAL = ".journal"
# How much may have to be merged again after a power cut, at the pace of a merge; syncing costs some of it.
SECONDS_BETWEEN_SYNCS = 10.0
# Written so much, the disk is set to work while the rest is being merged.
BYTES_BETWEEN_FLUSHES = 48 << 20


def merge_into(
    folder: Path,
    plan: Plan,
    watch: Watch,
    pace: Pace,
    name: str,
    parents: Sequence[Parent],
    recipe: JsonObject,
    *,
    keep_journal: bool = False,
) -> Findings:
    """Merge into `folder`, which is made or, if a run of the same merge was killed in it, gone on with.

    When this returns, the folder is whole and, once synced, may be renamed to where it belongs.

    Args:
        keep_journal: leave it, so that a kill before the rename does not make the folder a stranger's.
    """
    journal = Journal(folder, _digest_of(plan, recipe))
    if plan.method.gives_adapter:
        findings: Findings = merge_adapters(folder, plan, watch, pace, name, parents, recipe)
    else:
        outputs = [step.output for step in plan.steps]
        with CheckpointWriter(folder, outputs, again=bool(journal.finished)) as writer:
            journal.writer = writer
            findings = merge(plan, writer, watch, pace, frozenset(journal.finished), journal.note)
        _copy_companions(plan, folder)
        write_card(folder, name, plan, parents, recipe, write_report(folder, findings))
    if not keep_journal:
        end_journal(folder)
    return findings


def end_journal(folder: Path) -> None:
    (folder / JOURNAL).unlink()


class Journal:
    """Which tensors of a merge are on the disk: one line each, behind the digest of what is being merged."""

    def __init__(self, folder: Path, digest: str) -> None:
        self._path = folder / JOURNAL
        self.writer: CheckpointWriter | None = None
        self.finished: list[str] = []
        if self._path.is_file():
            first, *names = self._path.read_text(encoding="utf-8").split("\n")
            # A name without its line's end may be cut short.
            self.finished = names[:-1] if first == digest else []
        if not self.finished:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            self._path.write_text(digest + "\n", encoding="utf-8")
        self._pending: list[str] = []
        self._synced_at = time.monotonic()
        self._written = 0

    def note(self, name: str) -> None:
        """A tensor is written; it counts once it is on the disk as well."""
        self._pending.append(name)
        assert self.writer is not None
        self._written += self.writer.size_of(name)
        if self._written >= BYTES_BETWEEN_FLUSHES:
            self.writer.sync()
            self._written = 0
        if time.monotonic() - self._synced_at >= SECONDS_BETWEEN_SYNCS:
            self.writer.sync()
            with self._path.open("a", encoding="utf-8") as file:
                file.write("".join(f"{name}\n" for name in self._pending))
                file.flush()
                os.fsync(file.fileno())
            self._pending.clear()
            self._synced_at = time.monotonic()


def _digest_of(plan: Plan, recipe: JsonObject) -> str:
    """Of everything that the bytes of the result depend on; files by their names, sizes and times."""
    models = [plan.frame, *(expert.model for expert in plan.experts)]
    adapters = [expert.adapter for expert in plan.experts if expert.adapter is not None]
    files = [
        (str(file), stat.st_size, stat.st_mtime_ns)
        for artifact in (*models, *adapters)
        for file in ([artifact.path] if artifact.path.is_file() else sorted(artifact.path.iterdir()))
        for stat in [file.stat()]
    ]
    said = json.dumps([recipe, files, [step.output.name for step in plan.steps]], sort_keys=True, default=str)
    return hashlib.sha256(said.encode()).hexdigest()


def _copy_companions(plan: Plan, folder: Path) -> None:
    """Tokenizer, chat template, generation settings and config come from the frame."""
    source = plan.frame.path
    copy_companions(source, folder)
    config = read_object(source / "config.json")
    if plan.dtype is not None:
        # transformers 5 reads the first, 4 the second
        config |= {"dtype": plan.dtype, "torch_dtype": plan.dtype}
    config = restacked(config, {step.output.name: (step.base or step.sources[0]).tensor for step in plan.steps})
    (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if plan.vocabulary is not None or plan.chat_template is not None:
        write_tokenizer(folder, source, plan.vocabulary, plan.chat_template)

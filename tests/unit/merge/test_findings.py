from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from safetensors.torch import load_file, save_file

from artifacts import as_model
from fakes import FakeJob
from modelworks.core.nouns import AnyArtifact
from modelworks.merge.findings import samples
from modelworks.merge.run import run
from modelworks.merge.spec import MergeSpec
from tiny import tiny_llama


def test_a_sample_is_the_same_elements_whatever_the_pieces() -> None:
    size, chosen = 5_000_000, set()
    for start, stop in samples(size, 0, size, "sample"):
        chosen |= set(range(start, stop))

    again = set()
    for first in range(0, size, 70_001):
        last = min(first + 70_001, size)
        for start, stop in samples(size, first, last, "sample"):
            again |= set(range(first + start, first + stop))

    assert again == chosen
    assert 0.02 < len(chosen) / size < 0.05


def test_a_small_tensor_is_looked_at_whole_and_none_if_nothing_is_asked_for() -> None:
    assert list(samples(100, 0, 100, "sample")) == [(0, 100)]
    assert list(samples(100, 0, 100, "none")) == []


def merged(tmp_path: Path, scale: float) -> tuple[dict[str, object], Path]:
    """Two experts of opposite changes, half as large in the second."""
    base = tiny_llama(tmp_path / "base", dtype="float32")
    weights = load_file(base / "model.safetensors")
    for name, factor in (("one", scale), ("two", -scale / 2)):
        tiny_llama(tmp_path / name, dtype="float32")
        changed = {key: values + factor * torch.ones_like(values) for key, values in weights.items()}
        save_file(changed, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
    inputs: dict[str, AnyArtifact] = {name: as_model(tmp_path / name, name) for name in ("base", "one", "two")}
    job = FakeJob(tmp_path / "job", inputs)
    result = run(MergeSpec(base="base", models=("one", "two")), job)
    return dict(result), job.drafts[0].folder


def test_opposite_changes_are_told_as_opposite(tmp_path: Path) -> None:
    result, folder = merged(tmp_path, 0.5)

    report = json.loads((folder / "merge_report.json").read_text())
    elements = sum(values.numel() for values in load_file(folder / "model.safetensors").values())
    assert result["cosines"] == {"one / two": -1.0}
    # Every element moved by one half, by a quarter the other way.
    assert report["task_vector_norms"] == {
        "one": pytest.approx(0.5 * elements**0.5, rel=1e-3), "two": pytest.approx(0.25 * elements**0.5, rel=1e-3)
    }  # fmt: skip
    assert [row["group"] for row in report["layers"]] == ["other", "layer 0", "layer 1"]
    assert all(row["sign_conflicts"] == 1.0 and row["kept"] == 1.0 for row in report["layers"])
    assert report["share_looked_at"] == 1.0


def test_the_picture_has_a_row_a_layer_and_tells_every_number(tmp_path: Path) -> None:
    _, folder = merged(tmp_path, 0.5)

    picture = ElementTree.parse(folder / "merge_report.svg")
    titles = [element.text or "" for element in picture.iter("{http://www.w3.org/2000/svg}title")]
    assert len(titles) == 3 * 4
    assert any(title.startswith("layer 1, sign conflicts: 1") for title in titles)
    assert "merge_report.svg" in (folder / "README.md").read_text()

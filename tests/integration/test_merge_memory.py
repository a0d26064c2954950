"""A merge of the real model in a process of its own: right, and in little memory."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_CODE = """
import json, sys
from pathlib import Path

import psutil
import torch
from artifacts import as_model
from fakes import FakeJob

from modelworks.merge.run import run
from modelworks.merge.spec import MergeSpec

source, folder = map(Path, sys.argv[1:])
model = as_model(source, "smollm2")
before = psutil.Process().memory_full_info().rss
peak = 0

class Watching(FakeJob):
    def progress(self, done, total, unit, **facts):
        global peak
        peak = max(peak, psutil.Process().memory_full_info().rss)

job = Watching(folder, {"smollm2": model})
result = run(MergeSpec(base="smollm2", models=("smollm2", "smollm2"), weights=(0.5, -2.0)), job)
print(json.dumps({"grown": peak - before, "bytes": result["bytes"], "folder": str(job.drafts[0].folder)}))
"""


@pytest.mark.model
def test_merging_the_real_model_takes_a_fraction_of_its_size_in_memory(smollm2: Path, tmp_path: Path) -> None:
    tests = Path(__file__).parents[1]

    done = subprocess.run(
        [sys.executable, "-c", _CODE, str(smollm2), str(tmp_path)],
        check=True, capture_output=True, text=True, cwd=tests, env={"PYTHONPATH": str(tests)},
    )  # fmt: skip

    told = json.loads(done.stdout)
    # The model is 269 MB; three of them pass through.
    assert told["grown"] < 100_000_000
    merged = Path(told["folder"]) / "model.safetensors"
    assert merged.stat().st_size == pytest.approx(told["bytes"], rel=0.001)
    # Task vectors of the base itself are zero, so the base comes out, to the byte.
    assert merged.read_bytes() == (smollm2 / "model.safetensors").read_bytes()
    shutil.rmtree(told["folder"])

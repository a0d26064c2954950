"""Who is told to be in the way when a model finds no room."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from modelworks.serve.engine import EngineSpec
from modelworks.serve.holders import no_room

ON_GPU = EngineSpec(model_folder="", model_name="big", device="cuda:0")
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nSee the documentation")


def test_a_gpu_that_is_full_is_told_with_the_others_that_hold_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(
        f"#!/bin/sh\n[ $1 = --id=GPU-abc ] && echo trainer, 41, 90000 MiB && echo us, {os.getpid()}, 5 MiB"
    )
    program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="abc"))

    told = no_room(ON_GPU, FULL)

    assert told is not None
    assert told.code == "out_of_memory"
    assert told.message.startswith(
        "big cannot be loaded: CUDA out of memory. Tried to allocate 9 GiB.; "
        "cuda:0 is held by trainer (process 41, 90000 MiB): end that,"
    )


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (torch.AcceleratorError("CUDA-capable device(s) is/are busy or unavailable"), "engine_failed"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "out_of_memory"),
        (MemoryError(), "out_of_memory"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
    ],
)
def test_only_what_the_machine_lacks_is_told_so(
    error: Exception, code: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")

    told = no_room(EngineSpec(model_folder="", model_name="big"), error)

    assert (told and told.code) == code

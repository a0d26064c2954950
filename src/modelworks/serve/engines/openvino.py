"""OpenVINO GenAI in a child process: fast decoding of one model on a CPU. It serves no adapters."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

from modelworks.core.errors import Unsupported
from modelworks.serve.child import ChildEngine
from modelworks.serve.converted import openvino_of
from modelworks.serve.engine import Engine, EngineKind, EngineSpec, Place

REMEDY = (
    "pip install openvino-genai beside modelworks, or into a folder (pip install --target DIR openvino-genai) told by "
    'MODELWORKS_ENGINE_PROGRAMS=\'{"openvino": "DIR"}\'; or use the engine native'
)


def find(program: str | None) -> str | None:
    """The folder that openvino_genai is imported from, if it is not ours."""
    there = (Path(program) / "openvino_genai").is_dir() if program else importlib.util.find_spec("openvino_genai")
    if not there:
        raise Unsupported(
            f"engine openvino: openvino_genai was not found{f' in {program}' if program else ''}; {REMEDY}"
        )
    return program


async def start(spec: EngineSpec, place: Place) -> Engine:
    """Start one, on a folder that is written if it is not there."""
    find(spec.program)
    if spec.device != "cpu":
        raise Unsupported(f"the engine openvino computes on the CPU, not on {spec.device}; use --engine auto or native")
    own = dataclasses.replace(spec, weights_file=str(await openvino_of(spec, place)))
    return await ChildEngine.start(own, place, "modelworks.serve.openvino_process")


OPENVINO = EngineKind("openvino", start, find)

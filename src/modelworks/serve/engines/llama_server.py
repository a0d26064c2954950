"""llama.cpp's `llama-server` in a child process, over the model written as GGUF. It serves no adapters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from modelworks.core.errors import Unsupported
from modelworks.core.generation import GenerateRequest
from modelworks.core.nouns import JsonObject
from modelworks.serve.converted import gguf_of
from modelworks.serve.engine import Engine, EngineKind, EngineSpec, Place
from modelworks.serve.programs import find_program
from modelworks.serve.remote import Program, RemoteEngine

REMEDY = (
    "install llama.cpp so that llama-server is on the PATH, or say where it is: "
    'MODELWORKS_ENGINE_PROGRAMS=\'{"llama_server": "/path/to/llama-server"}\'; or use the engine native'
)
# Together for all requests; one alone may use it all.
_CACHED_EACH = 1024
# Tokens that penalties count, of which it keeps a list for each request; its own default is 64.
_LOOKS_BACK = 32_768


def command(program: str, spec: EngineSpec, weights: Path, sees: int, port: int) -> list[str]:
    """What starts the server, over a cache that all requests share."""
    cached = min(sees * spec.max_sequences, max(sees, _CACHED_EACH * spec.max_sequences))
    return [
        program, "--model", str(weights), "--alias", spec.model_name, "--host", "127.0.0.1", "--port", str(port),
        "--parallel", str(spec.max_sequences), "--ctx-size", str(cached), "--kv-unified", "--metrics",
        "--n-gpu-layers", "0" if spec.device == "cpu" else "999",
        *(["--threads", str(spec.threads)] if spec.threads else []),
    ]  # fmt: skip


def fields(request: GenerateRequest, _ends: Sequence[int]) -> JsonObject:
    """llama.cpp's own words."""
    said: dict[str, Any] = {"repeat_penalty": request.repetition_penalty, "cache_prompt": True}
    if request.repetition_penalty != 1 or request.presence_penalty or request.frequency_penalty:
        said["repeat_last_n"] = _LOOKS_BACK
    if (guide := request.guide) is not None:
        if guide.kind != "json_schema":
            raise Unsupported("the engine llama_server takes JSON schemas, no other grammar; use native")
        said["json_schema"] = json.loads(guide.text)
    return said


async def start(spec: EngineSpec, place: Place) -> Engine:
    """Start one, on a file that is written if it is not there."""
    found = find_program(spec.program, "llama-server", REMEDY)
    weights = await gguf_of(spec, place)
    config = json.loads((Path(spec.model_folder) / "config.json").read_text(encoding="utf-8"))
    sees = min(spec.max_context or config["max_position_embeddings"], config["max_position_embeddings"])
    program = Program(
        name="llama_server", command=partial(command, found, spec, weights, sees), key_variable="LLAMA_API_KEY",
        fields=fields, takes=("guide",), waiting="llamacpp:requests_deferred",
        no_adapters="llama-server loads no adapter while it runs; merge it into the model, or use the engine native",
    )  # fmt: skip
    return await RemoteEngine.start(spec, place, program)


LLAMA_SERVER = EngineKind("llama_server", start, lambda program: find_program(program, "llama-server", REMEDY))

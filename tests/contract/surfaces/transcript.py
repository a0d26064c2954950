"""Golden transcripts: what is asked and what comes back, with all that differs from run to run behind typed names."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract.surfaces.world import World

if TYPE_CHECKING:
    import httpx2

FOLDER = Path(__file__).parent / "transcripts"
UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
VOLATILE = (
    (UUID, "<uuid>"),
    (r"(?<=no trained model is called )\d+", "<number>"),
    (r"train_\d{6}\b", "<train_NNNNNN>"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", "<time, milliseconds, Z>"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "<time, seconds, Z>"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(?![\d.Z+])", "<time, naive>"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+(\+00:00|Z)", "<time, UTC>"),
    (r"/tmp/\S*?/(?=home\b)", "<workspace>/"),
    (r"\bcuda(:\d+)?\b|\bcpu\b", "<device>"),
)
# What a model says, and what only this machine and this moment know.
SAID = {"response", "full_response", "result", "generated_text", "text", "full_text"}
MEASURED = {
    "loss", "learning_rate", "grad_norm", "step_time", "eta_seconds", "size_mb", "generation_time_ms", "final_loss",
    "tokens_generated", "perplexity", "cuda_available", "epoch", "seq", "number", "size_bytes",
    "parameters", "memory_bytes", "pid",
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One request: `line` is method, port and path; `{job}` in it or the body is what an earlier step kept so."""

    line: str
    body: Any = None
    raw: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    files: dict[str, tuple[str, bytes]] | None = None
    # name: key of the answer
    keep: dict[str, str] = field(default_factory=dict)
    # Only the types of what is answered, where the words belong to somebody else, e.g. plug-ins.
    types_only: bool = False


def play(world: World, steps: Sequence[Step], kept: dict[str, str]) -> list[dict[str, Any]]:
    """Send every step; return the exchanges. `kept` is added to."""
    return [_exchange(world, step, kept) for step in steps]


def _exchange(world: World, step: Step, kept: dict[str, str]) -> dict[str, Any]:
    method, port, path = _filled(step.line, kept).split(" ", 2)
    sent: dict[str, Any] = {"content": _filled(json.dumps(step.body), kept)} if step.body is not None else {}
    if step.raw is not None:
        sent = {"content": step.raw}
    if step.files is not None:
        sent = {"files": step.files}
    headers = step.headers | ({"Content-Type": "application/json"} if "content" in sent else {})
    reply = world.http.request(method, world.url(path, int(port)), headers=headers, **sent)
    for name, key in step.keep.items():
        assert reply.is_success, reply.text
        kept[name] = str(reply.json()[key])
    request = {"line": step.line} | {key: value for key, value in (("body", step.body), ("raw", step.raw)) if value}
    if step.files is not None:
        request["files"] = {
            name: f"{filename}, {len(content)} bytes" for name, (filename, content) in step.files.items()
        }
    if step.headers:
        request["headers"] = step.headers
    media_type = reply.headers.get("content-type", "").split(";")[0]
    body = _body(reply, media_type)
    return {
        "request": request,
        "status": reply.status_code,
        "media_type": media_type,
        "body": _types(body) if step.types_only else shape(body),
    }


def _filled(text: str, kept: dict[str, str]) -> str:
    for name, value in kept.items():
        text = text.replace("{" + name + "}", value)
    return text


def _body(reply: httpx2.Response, media_type: str) -> Any:
    if media_type.endswith("json"):
        return reply.json()
    if media_type == "text/event-stream":
        return [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: ")]
    if media_type == "text/html":
        return re.findall(r"<title>(.*?)</title>", reply.text)
    return f"<{media_type}>"


def shape(value: Any, key: str = "") -> Any:
    """The value with everything volatile behind the name of its type; items of a list that look alike once."""
    if isinstance(value, dict):
        return {name: shape(found, name) for name, found in sorted(value.items())}
    if isinstance(value, list):
        return _distinct([shape(item, key) for item in value])
    if key == "eta_seconds":
        return "<float or null>"
    if value is None:
        return None
    if key == "id" and isinstance(value, int):
        return "<number>"
    if key in SAID or key in MEASURED:
        return f"<{type(value).__name__}>"
    if isinstance(value, str):
        for pattern, name in VOLATILE:
            value = re.sub(pattern, name, value)
    return value


def _types(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _types(found) for name, found in sorted(value.items())}
    if isinstance(value, list):
        return _distinct([_types(item) for item in value])
    return f"<{type(value).__name__}>"


def _distinct(items: list[Any]) -> list[Any]:
    return [item for index, item in enumerate(items) if item not in items[:index]]


def golden(name: str) -> list[dict[str, Any]]:
    path = FOLDER / f"{name}.json"
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return found


def write(name: str, exchanges: list[dict[str, Any]]) -> None:
    FOLDER.mkdir(exist_ok=True)
    text = json.dumps(exchanges, indent=2, ensure_ascii=False)
    (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")

"""Between the Model Merging API's words and ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from modelworks.app.archive import Archive
from modelworks.app.plugins import PluginInfo
from modelworks.core.clock import to_iso
from modelworks.core.errors import Invalid
from modelworks.core.nouns import Job, JsonObject
from modelworks.core.registry import nearest
from modelworks.core.spec import parse_spec
from modelworks.core.states import JobState
from modelworks.surfaces.merging_api import wire
from modelworks.web.receiving import read_object
from modelworks.web.refused import told

REQUIRED = ("base_model", "models_to_merge", "merge_method")
# In their document's order and words; their task_arithmetic rounds to bfloat16 at every step, ours does not.
DOCUMENTED: Mapping[str, str] = {
    "average_merging": "Equal-weight averaging of models",
    "task_arithmetic": "Task vector arithmetic merging",
    "ties_merging": "TIES merging with parameter pruning",
    "ties_merging_dare": "TIES merging with one threshold for the whole model",
    "mask_merging": "Mask-based merging with weight masking",
}
OURS: Mapping[str, str] = {"task_arithmetic": "task_arithmetic_bf16", "task_arithmetic_float32": "task_arithmetic"}
THEIRS = {ours: theirs for theirs, ours in OURS.items()}
# What is listed otherwise than the plug-in says, because requests here have other defaults.
SHOWN: Mapping[str, JsonObject] = {
    "scaling_coefficient": {"default": 0.3, "request_default": 1.0},
    "weight_mask_rates": {"default": [0.5, 0.5]},
    "mask_strategy": {"default": "magnitude"},
}
STATUS: Mapping[JobState, wire.STATUS] = {
    JobState.QUEUED: "pending", JobState.PAUSED: "pending", JobState.RUNNING: "running",
    JobState.SUCCEEDED: "completed", JobState.FAILED: "failed", JobState.CANCELLED: "failed",
}  # fmt: skip


def read(content: bytes) -> wire.MergeIn:
    """Raises Invalid for what is no object of theirs; a key that is null is as good as absent."""
    body = read_object(content, "/api/example shows one")
    given = {key: value for key, value in body.items() if value is not None}
    for key in REQUIRED:
        if key not in given:
            raise Invalid(f"Missing required parameter: {key}")
    return parse_spec(wire.MergeIn, given)


def to_spec(asked: wire.MergeIn, methods: Sequence[PluginInfo]) -> tuple[dict[str, object], list[str]]:
    """The body of a MergeSpec, and what of the request is not done.

    Raises:
        Invalid: there is no such method.
    """
    by_name = {method.name: method for method in methods}
    method = by_name.get(OURS.get(asked.merge_method, asked.merge_method))
    if method is None:
        names = [THEIRS.get(name, name) for name in by_name]
        raise Invalid(f"merge_method: none is called {asked.merge_method!r}; {nearest(asked.merge_method, names)}")
    known, params = _properties(method), to_params(asked)
    others = {key for each in methods for key in _properties(each)} & asked.model_fields_set - known.keys()
    notes = [*told(asked), *(f"{key}: {asked.merge_method} has no such parameter, ignored" for key in sorted(others))]
    spec: dict[str, object] = {
        "method": method.name, "base": asked.base_model, "models": asked.models_to_merge, "weights": asked.weights,
        "params": {key: params[key] for key in known if key in params} | (asked.params or {}), "dtype": asked.dtype,
        "exclude_param_names_regex": asked.exclude_param_names_regex, "device": "cuda" if asked.use_gpu else "cpu",
        "output_dir": asked.output_dir.rstrip("/") or "/",
    }  # fmt: skip
    return spec, notes


def to_params(asked: wire.MergeIn) -> JsonObject:
    """The request with its defaults, to be told again: no token, and nothing that is not known."""
    fields = wire.MergeIn.model_fields.keys() - {"hf_token"}
    dumped: JsonObject = asked.model_dump(mode="json", include=set(fields), exclude_none=True)
    dumped.setdefault("weight_mask_rates", [0.5 for _ in asked.models_to_merge])
    return dumped


def to_job(job: Job, percent: float) -> wire.JobOut:
    params, warnings = job.labels.get("params"), job.labels.get("warnings")
    error = job.error.message if job.error else None
    return wire.JobOut(
        job_id=job.id, status=STATUS[job.state], progress=percent, created_at=to_iso(job.created_at),
        started_at=to_iso(job.started_at) if job.started_at else None,
        completed_at=to_iso(job.finished_at) if job.finished_at else None,
        error_message="cancelled" if job.state is JobState.CANCELLED else error,
        output_path=output_path(job) if job.state is JobState.SUCCEEDED else None,
        params=params if isinstance(params, dict) else _params_of(job.spec),
        warnings=[str(warning) for warning in warnings] if isinstance(warnings, list) else [],
    )  # fmt: skip


def to_download(job: Job, archive: Archive) -> wire.DownloadOut:
    url, path = f"/api/download/{job.id}?archive=1", output_path(job)
    where = f"Merged model available at {path}" if path else "Merged model available"
    return wire.DownloadOut(
        job_id=job.id, output_path=path, message=f"{where}; fetch it as a tar from {url}",
        archive_url=url, size_bytes=archive.size_bytes,
    )  # fmt: skip


def to_methods(methods: Sequence[PluginInfo]) -> list[wire.MethodOut]:
    by_name = {THEIRS.get(method.name, method.name): method for method in methods}
    said = {**DOCUMENTED, **{name: each.description for name, each in by_name.items() if name not in DOCUMENTED}}
    found = {name: _parameters(by_name[name]) for name in said}
    return [wire.MethodOut(name=name, description=said[name], parameters=each) for name, each in found.items()]


def output_path(job: Job) -> str | None:
    """Where a door asked for the result to be placed as well, relative to the workspace."""
    folder = job.spec.get("output_dir")
    return f"{folder}/{job.id}" if folder else None


def _params_of(spec: JsonObject) -> JsonObject:
    """What their client would have asked for a merge that came from elsewhere."""
    params, method = spec.get("params"), str(spec["method"])
    own = params if isinstance(params, dict) else {}
    return own | {
        "base_model": spec["base"], "models_to_merge": spec["models"], "merge_method": THEIRS.get(method, method),
        "use_gpu": spec["device"] == "cuda", "exclude_param_names_regex": spec["exclude_param_names_regex"],
    }  # fmt: skip


def _properties(method: PluginInfo) -> dict[str, Any]:
    return dict((method.parameters or {}).get("properties", {}))


def _parameters(method: PluginInfo) -> dict[str, JsonObject]:
    found: dict[str, JsonObject] = {}
    for name, field in _properties(method).items():
        kind = next(each for each in (field, *field.get("anyOf", ())) if each.get("type", "null") != "null")
        about = {"type": "float" if kind["type"] == "number" else kind["type"], "default": field.get("default")}
        choices = {"choices": kind["enum"]} if "enum" in kind else {}
        found[name] = about | {"description": field.get("description", "")} | choices | SHOWN.get(name, {})
    return found

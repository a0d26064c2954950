"""The OpenAPI document, made whole: the errors of every route with their bodies, the keys, what each tag holds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import FastAPI

from modelworks.app.kinds import KINDS
from modelworks.core.errors import (
    Conflict,
    Denied,
    Invalid,
    ModelworksError,
    NotFound,
    OutOfSpace,
    Problem,
    TooLarge,
    Unavailable,
    Unsupported,
)
from modelworks.core.generation import QueueFull
from modelworks.server.errors import Bug, ForeignHost, MissingKey, error_response, status_of

Json = dict[str, Any]
OURS, OPENAI = "/modelworks/", "/v1/"
TAGS: Mapping[str, str] = {
    "jobs": "Trainings, merges, evaluations and pulls: queue one, follow its events, cancel it, try it again.",
    "artifacts": "Datasets, models and adapters: bring them in, look at them, ask where they came from.",
    "system": "The server about itself: health, doctor, plug-ins, and the models it serves.",
    "openai": "What the OpenAI SDK speaks: models, chats, completions, files and fine-tuning; its `base_url` is `/v1`.",
    "Model Merging API": "The Model Merging API, as its own document describes it.",
    "ModelForge REST API": "ModelForge's REST API, as its own document describes it.",
    "Model Finetuning API": "The Model Finetuning API, as its own document describes it.",
    "Model Server": "The Model Server, as its own document describes it; every call is a POST.",
    "SLM API": "The SLM API, as its own document describes it: one small model, whole answers and streams.",
}
# One error of each status as it really looks; the sentence says when it comes.
ERRORS: tuple[tuple[str, ModelworksError], ...] = (
    (
        "The request cannot be meant: an unknown key, a wrong value, inputs that do not fit together.",
        Invalid(
            "train: learning_rat: unknown key (did you mean learning_rate?)",
            problems=(Problem("learning_rat", "unknown key", "did you mean learning_rate?"),),
        ),
    ),
    ("No API key, or a wrong one.", MissingKey("no API key; send `Authorization: Bearer KEY` or `x-api-key: KEY`")),
    (
        "A path outside the allowed folders, or a web page from elsewhere.",
        Denied("/etc lies outside the folders that requests may name; --allow-path /etc allows it"),
    ),
    ("There is no such thing here.", NotFound("no model is called 'smollm'; did you mean 'smollm2-135m'?")),
    (
        "It exists already, or its state does not allow this.",
        Conflict("'mine' exists already; choose another name or say --replace"),
    ),
    ("The body is too large.", TooLarge("the body is larger than 1 MiB, which is the most this address takes")),
    ("The Host header names another server.", ForeignHost("this server is not called 'example.com'")),
    (
        "Too many requests wait for this model; `Retry-After` says when to ask again.",
        QueueFull("288 requests wait for mine, the most allowed; ask again later"),
    ),
    ("A bug; the server's log says more under the id.", Bug("something went wrong here; the server's log says more")),
    ("This machine, this build or this model cannot do it.", Unsupported("this machine has no CUDA device; use cpu")),
    (
        "Not now; `Retry-After` says when to ask again.",
        Unavailable("mine is being unloaded; ask again in a moment"),
    ),
    ("The disk has no room for it.", OutOfSpace("12 GB are needed and 3 GB are free; remove what is not needed")),
)
# What a route can answer beside what its parameters and its method tell.
FURTHER: tuple[tuple[str, set[int]], ...] = (
    (rf"post {OURS}({'|'.join(KINDS)})", {403, 404, 409, 501, 507}),
    (rf"post {OURS}jobs/.*", {409}),
    (rf"(post|put) {OURS}(datasets|models).*", {403, 404, 409, 413, 507}),
    (rf"delete {OURS}.*", {409}),
    (rf"post {OURS}deployments/.*", {404, 501, 503}),
    (rf"get {OURS}deployments", {503}),
    (rf"post {OPENAI}(chat/)?completions", {404, 429, 501, 503}),
    (r"post /slm/(load|generate|stream)", {404, 429, 501, 503}),
    (rf"post {OPENAI}files", {409, 413, 507}),
    (rf"post {OPENAI}fine_tuning/.*", {404, 409, 501, 507}),
)
# Bodies of OpenAI's addresses, whose own reference says the rest; ours have theirs at their specs.
EXAMPLES: Mapping[str, Json] = {
    "/v1/chat/completions": {
        "model": "me/first",
        "messages": [{"role": "user", "content": "Say hello"}],
        "max_tokens": 64,
        "temperature": 0.7,
    },
    "/v1/completions": {"model": "me/first", "prompt": "Once upon a time", "max_tokens": 64},
    "/v1/fine_tuning/jobs": {
        "model": "smollm2-135m",
        "training_file": "file-01a1fcee",
        "suffix": "mine",
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
    },
    "/v1/files": {"purpose": "fine-tune", "file": "rows.jsonl"},
}
FILE_FORM: Json = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {"file": {"type": "string", "format": "binary"}, "purpose": {"type": "string"}},
}
MEANINGS: Mapping[str, str] = {
    "type": "always about:blank: `code` tells errors apart",
    "title": "the status in words",
    "status": "the status of the answer",
    "code": "what went wrong, for programs",
    "category": "the nearest of the codes that every client knows: invalid, not_found, conflict, denied, unavailable, "
    "too_large, out_of_space, unsupported, unsafe_format, error",
    "detail": "what was found, where, and what to do, for people",
    "problems": "every field that is to blame",
    "where": "the field",
    "what": "what is wrong with it",
    "remedy": "what to do; null where that is plain",
}


def complete(app: FastAPI) -> None:
    """Have `app` publish the whole document at /openapi.json."""
    generated = app.openapi

    def openapi() -> Json:
        if app.openapi_schema is None:
            _complete(generated())
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign] # the place that FastAPI gives for this


def _complete(document: Json) -> None:
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    document["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "the server's API key, where it has one"},
        "key": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "the same key"},
    }
    document["security"] = [{}, {"bearer": []}, {"key": []}]
    used = {tag for _, _, operation in _operations(document) for tag in operation.get("tags", ())}
    document["tags"] = [{"name": tag, "description": text} for tag, text in TAGS.items() if tag in used]
    for path, method, operation in _operations(document):
        _name(operation)
        if method == "post" and path in EXAMPLES:
            _add_example(operation, EXAMPLES[path])
        _add_errors(path, method, operation, schemas)
    _shorten_ids(document)
    for left in ("HTTPValidationError", "ValidationError"):
        schemas.pop(left, None)


def _operations(document: Json) -> Iterator[tuple[str, str, Json]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def _name(operation: Json) -> None:
    """The first sentence says more than the name of a function."""
    description = " ".join(operation.get("description", "").split())
    made_up = re.sub(r"\W", "", operation["summary"].lower())
    if description and operation["operationId"].replace("_", "").startswith(made_up):
        first, _, rest = description.partition(". ")
        operation["summary"] = first.rstrip(".")
        operation["description"] = rest
    if not operation.get("description"):
        operation.pop("description", None)


def _add_example(operation: Json, example: Json) -> None:
    # A form that is streamed to the disk is not seen by FastAPI.
    unseen = {"required": True, "content": {"multipart/form-data": {"schema": FILE_FORM}}}
    for content in operation.setdefault("requestBody", unseen)["content"].values():
        content["example"] = example


def _add_errors(path: str, method: str, operation: Json, schemas: Json) -> None:
    responses = operation["responses"]
    responses.pop("422", None)
    # A document may name a status and say no more.
    bare = {int(code) for code, found in responses.items() if code.isdigit() and "content" not in found}
    wanted = _statuses(path, method, operation) | bare
    for when, error in ERRORS:
        code = str(status_of(error))
        if status_of(error) in wanted and "content" not in responses.get(code, {}):
            responses[code] = _response(path, error, when, schemas) | responses.get(code, {})
    whatever = _response(path, Unavailable("the server is stopping"), "Any other error, in the same form.", schemas)
    responses.setdefault("default", whatever)
    operation["responses"] = dict(sorted(responses.items()))


def _statuses(path: str, method: str, operation: Json) -> set[int]:
    found = {401, 421, 500}
    if operation.get("parameters") or "requestBody" in operation:
        found |= {400}
    if "requestBody" in operation:
        found |= {413}
    if "{" in path:
        found |= {404}
    if method != "get":
        found |= {403}
    for pattern, further in FURTHER:
        if re.fullmatch(pattern, f"{method} {path}"):
            found |= further
    return found


def _response(path: str, error: ModelworksError, when: str, schemas: Json) -> Json:
    """What is really sent for `error` at `path`, as a description, a schema and an example."""
    answer = error_response(error, path)
    body = json.loads(bytes(answer.body))
    name = _schema_name(path)
    schemas.setdefault(name, _schema_of(body))
    content = {str(answer.media_type): {"schema": {"$ref": f"#/components/schemas/{name}"}, "example": body}}
    return {"description": when, "content": content}


def _schema_name(path: str) -> str:
    named = {OURS: "ProblemDetails", OPENAI: "OpenAIError", "/slm/": "SlmError", "/api/v1/": "ModelServerError"}
    return next((name for prefix, name in named.items() if path.startswith(prefix)), "DocumentError")


def _schema_of(value: object) -> Json:
    """The schema of one example; what is empty or null in it may be a text too."""
    if isinstance(value, dict):
        fields = {
            key: _schema_of(found) | ({"description": MEANINGS[key]} if key in MEANINGS else {})
            for key, found in value.items()
        }
        return {"type": "object", "required": list(fields), "properties": fields}
    if isinstance(value, list):
        return {"type": "array", "items": _schema_of(value[0]) if value else {}}
    kinds = {bool: "boolean", int: "integer", str: "string"}
    return {"type": kinds.get(type(value), ["string", "null"])}


def _shorten_ids(document: Json) -> None:
    """`modelworks_list_jobs` instead of `list_jobs_modelworks_jobs_get`."""
    for path, method, operation in _operations(document):
        made_up = re.sub(r"\W", "_", f"{path}_{method}")
        name = operation["operationId"].removesuffix(made_up)
        if name != operation["operationId"]:
            operation["operationId"] = f"{path.split('/')[1]}_{name}"

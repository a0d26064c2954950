"""The OpenAPI document, made whole: the errors of every route with their bodies, the keys, what each tag holds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI

from modelworks.core.errors import ModelworksError, Unavailable
from modelworks.server import openapi_texts as texts
from modelworks.server.errors import error_response, status_of

Json = dict[str, Any]
SCHEMAS = "#/components/schemas/"


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
    document["tags"] = [{"name": tag, "description": text} for tag, text in texts.TAGS.items() if tag in used]
    for path, method, operation in _operations(document):
        _name(operation)
        if method == "post":
            _add_examples(path, operation)
        for parameter in operation.get("parameters", ()):
            parameter.setdefault("description", texts.PARAMETERS.get(parameter["name"], ""))
        _add_errors(path, method, operation, schemas)
    _shorten_ids(document)
    for left in ("HTTPValidationError", "ValidationError"):
        schemas.pop(left, None)
    _tidy_schemas(document)


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


def _add_examples(path: str, operation: Json) -> None:
    if path in texts.EXAMPLES:
        # A form that is streamed to the disk is not seen by FastAPI.
        unseen = {"required": True, "content": {"multipart/form-data": {"schema": texts.FILE_FORM}}}
        for content in operation.setdefault("requestBody", unseen)["content"].values():
            content["example"] = texts.EXAMPLES[path]
    if path in texts.ANSWERS:
        answer = {"schema": {"type": "object"}, "example": texts.ANSWERS[path]}
        operation["responses"]["200"]["content"] = {"application/json": answer, "text/event-stream": {}}


def _add_errors(path: str, method: str, operation: Json, schemas: Json) -> None:
    responses = operation["responses"]
    responses.pop("422", None)
    # A document may name a status and say no more.
    bare = {int(code) for code, found in responses.items() if code.isdigit() and "content" not in found}
    wanted = _statuses(path, method, operation) | bare
    for when, error in texts.ERRORS:
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
    for pattern, further in texts.FURTHER:
        if re.fullmatch(pattern, f"{method} {path}"):
            found |= further
    return found


def _response(path: str, error: ModelworksError, when: str, schemas: Json) -> Json:
    """What is really sent for `error` at `path`, as a description, a schema and an example."""
    answer = error_response(error, path)
    body = json.loads(bytes(answer.body))
    name = _schema_name(path)
    schemas.setdefault(name, _schema_of(body))
    content = {str(answer.media_type): {"schema": {"$ref": SCHEMAS + name}, "example": body}}
    return {"description": when, "content": content}


def _schema_name(path: str) -> str:
    named = {
        texts.OURS: "ProblemDetails",
        "/metrics": "ProblemDetails",
        texts.OPENAI: "OpenAIError",
        "/slm/": "SlmError",
        "/api/v1/": "ModelServerError",
    }
    return next((name for prefix, name in named.items() if path.startswith(prefix)), "DocumentError")


def _schema_of(value: object) -> Json:
    """The schema of one example; what is empty or null in it may be a text too."""
    if isinstance(value, dict):
        fields = {
            key: _schema_of(found) | ({"description": texts.MEANINGS[key]} if key in texts.MEANINGS else {})
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


def _tidy_schemas(document: Json) -> None:
    """Put every schema into one place, and write `slm_InfoOut` for `modelworks__surfaces__slm__wire__InfoOut`."""
    text = json.dumps(document).replace('"#/$defs/', f'"{SCHEMAS}')
    for name in [name for name in document["components"]["schemas"] if "__" in name]:
        parts = name.split("__")
        text = text.replace(f'"{SCHEMAS}{name}"', f'"{SCHEMAS}{parts[-3]}_{parts[-1]}"')
        text = text.replace(f'"{name}":', f'"{parts[-3]}_{parts[-1]}":')
    document.update(json.loads(text))
    for _, _, operation in _operations(document):
        for content in operation.get("requestBody", {}).get("content", {}).values():
            document["components"]["schemas"] |= content["schema"].pop("$defs", {})

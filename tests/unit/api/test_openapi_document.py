"""The OpenAPI document: whole, valid, and readable for somebody who has nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis.openapi
from schemathesis.core.result import Err
from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR

from doors import open_door
from modelworks.app.kinds import KINDS
from modelworks.core.spec import parse_spec
from modelworks.server.openapi_texts import TAGS

OURS = ("/modelworks/", "/v1/")
ERROR_SCHEMAS = {
    "/modelworks/": "ProblemDetails", "/v1/": "OpenAIError", "/slm/": "SlmError", "/api/v1/": "ModelServerError",
}  # fmt: skip
Operation = tuple[str, str, dict[str, Any]]


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    with open_door(tmp_path_factory.mktemp("openapi") / "home") as door:
        yield door.client.get("/openapi.json").json()


@pytest.fixture(scope="module")
def operations(document: dict[str, Any]) -> list[Operation]:
    return [(path, method, found) for path, methods in document["paths"].items() for method, found in methods.items()]


def resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def test_it_is_valid_and_can_be_read_by_a_tool(document: dict[str, Any]) -> None:
    OPENAPI_31_VALIDATOR.validate(document)

    read = list(schemathesis.openapi.from_dict(document).get_all_operations())

    assert [found for found in read if isinstance(found, Err)] == []
    assert len(read) == sum(len(methods) for methods in document["paths"].values())


def test_every_route_has_a_summary_and_an_id_of_its_own(operations: list[Operation]) -> None:
    ids = [operation["operationId"] for _, _, operation in operations]

    assert [path for path, _, operation in operations if not operation.get("summary")] == []
    assert sorted(ids) == sorted(set(ids))
    assert [name for name in ids if "__" in name] == []
    assert {"modelworks_list_jobs", "v1_list_models", "train"} <= set(ids)


def test_every_tag_is_explained(document: dict[str, Any], operations: list[Operation]) -> None:
    used = {tag for _, _, operation in operations for tag in operation.get("tags", ["none"])}

    assert used <= set(TAGS)
    assert {tag["name"] for tag in document["tags"]} == used


def test_every_parameter_is_explained(operations: list[Operation]) -> None:
    silent = [
        f"{path} {parameter['name']}"
        for path, _, operation in operations
        for parameter in operation.get("parameters", ())
        if not parameter.get("description")
    ]

    assert silent == []


def test_every_body_has_an_example(document: dict[str, Any], operations: list[Operation]) -> None:
    without = [
        f"{method} {path}"
        for path, method, operation in operations
        for content in operation.get("requestBody", {}).get("content", {}).values()
        if "example" not in content and "examples" not in resolved(document, content["schema"])
    ]

    assert without == []


def test_every_example_of_a_job_is_a_job_that_could_be_asked_for(document: dict[str, Any]) -> None:
    for name, kind in KINDS.items():
        body = document["paths"][f"/modelworks/{name}"]["post"]["requestBody"]["content"]["application/json"]
        for example in resolved(document, body["schema"])["examples"]:
            assert parse_spec(kind.spec, example).model_dump(mode="json").items() >= example.items()


def test_every_error_has_the_schema_of_its_door_and_an_example(
    document: dict[str, Any], operations: list[Operation]
) -> None:
    for path, method, operation in operations:
        schema = next((name for prefix, name in ERROR_SCHEMAS.items() if path.startswith(prefix)), "DocumentError")
        errors = {code: found for code, found in operation["responses"].items() if code[0] in "45d"}
        assert {"401", "500", "default"} <= set(errors), path
        assert ("400" in errors) >= ("requestBody" in operation), path
        assert ("404" in errors) >= ("{" in path), path
        for code, found in errors.items():
            for content in found["content"].values():
                if path.startswith(OURS):
                    assert content["schema"] == {"$ref": f"#/components/schemas/{schema}"}, f"{method} {path} {code}"
                    assert content["example"], f"{method} {path} {code}"


def test_a_job_s_errors_are_all_told(document: dict[str, Any]) -> None:
    responses = document["paths"]["/modelworks/train"]["post"]["responses"]

    assert {"202", "400", "401", "403", "404", "409", "413", "501", "507", "default"} <= set(responses)
    problem = responses["400"]["content"]["application/problem+json"]
    assert problem["example"]["code"] == "invalid"
    assert problem["example"]["problems"][0]["where"] == "learning_rat"


def test_an_error_that_is_sent_has_the_documented_fields(document: dict[str, Any], tmp_path: Path) -> None:
    with open_door(tmp_path / "home") as door:
        sent = {name: door.client.get(f"{prefix}nothing-here") for prefix, name in ERROR_SCHEMAS.items()}

    for name, answer in sent.items():
        if name in document["components"]["schemas"]:
            assert set(answer.json()) == set(document["components"]["schemas"][name]["required"]), name

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelworks.app.services import Services
from modelworks.app.wiring import open_app
from modelworks.core.config import Settings
from modelworks.core.errors import Conflict, Denied, Invalid, NotFound, UnsafeFormat, Unsupported
from modelworks.core.states import JobState
from modelworks.data.spec import ImportSpec
from modelworks.store import jobs as queue
from tiny import tiny_adapter, tiny_llama

SPEC = {"model": "org/tiny", "dataset": "rows", "max_length": 64}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    tiny_llama(folder / "tiny")
    tiny_adapter(folder / "adapter", folder / "tiny")
    rows = [json.dumps({"prompt": f"{number}?", "completion": f"{number}!"}) for number in range(20)]
    (folder / "rows.jsonl").write_text("\n".join(rows))
    return folder


@pytest.fixture
def services(tmp_path: Path, sources: Path) -> Iterator[Services]:
    slots = {"cpu": 1, "io": 1}
    app = open_app(Settings.model_validate({"home": tmp_path / "home", "allow_paths": (sources,), "slots": slots}))
    app.services.catalog.add_model(sources / "tiny", "org/tiny")
    app.services.catalog.upload(sources / "rows.jsonl", ImportSpec(name="rows"))
    yield app.services
    app.close()


def test_a_job_is_queued_with_what_its_names_meant(services: Services) -> None:
    job = services.submit("train", SPEC)

    assert job.state is JobState.QUEUED
    assert job.spec["name"] == "tiny-rows"
    (claim,) = queue.unfinished(services.database)
    assert set(claim.inputs) == {"org/tiny", "rows"}


def test_unknown_names_are_told_together_with_the_nearest(services: Services) -> None:
    with pytest.raises(NotFound) as raised:
        services.submit("train", SPEC | {"model": "org/tin", "dataset": "row"})

    assert [problem.where for problem in raised.value.problems] == ["org/tin", "row"]
    assert "did you mean org/tiny?" in raised.value.message
    assert "did you mean rows?" in raised.value.message


def test_an_unknown_key_names_the_nearest(services: Services) -> None:
    with pytest.raises(Invalid, match=r"learning_rat: unknown key \(did you mean learning_rate"):
        services.submit("train", SPEC | {"learning_rat": 1})


def test_a_name_in_use_is_refused_and_a_derived_one_gets_a_number(services: Services, sources: Path) -> None:
    services.catalog.add_model(sources / "tiny", "tiny-rows")

    with pytest.raises(Conflict, match="'tiny-rows' exists already"):
        services.submit("train", SPEC | {"name": "tiny-rows"})
    assert services.submit("train", SPEC).spec["name"] == "tiny-rows-2"
    assert services.submit("train", SPEC | {"name": "tiny-rows", "replace": True}).spec["name"] == "tiny-rows"


def test_two_jobs_cannot_promise_one_name(services: Services) -> None:
    services.submit("train", SPEC | {"name": "mine"})

    with pytest.raises(Conflict, match="will publish 'mine'"):
        services.submit("train", SPEC | {"name": "mine"})


def test_one_idempotency_key_is_one_job_although_its_name_is_taken_by_then(services: Services) -> None:
    first = services.submit("train", SPEC, idempotency_key="k")
    again = services.submit("train", SPEC, idempotency_key="k")

    assert again.id == first.id
    with pytest.raises(Conflict, match="another request"):
        services.submit("train", SPEC | {"seed": 9}, idempotency_key="k")


def test_a_job_for_a_device_that_is_not_here_is_refused_at_once(services: Services) -> None:
    with pytest.raises(Unsupported, match=r"needs gpu:1, but this machine offers cpu:1, io:1"):
        services.submit("train", SPEC | {"device": "cuda"})


def test_a_retry_keeps_the_checkpoints(services: Services) -> None:
    old = services.submit("train", SPEC | {"name": "mine"})
    services.cancel(old.id)
    kept = services.folder(old.id).checkpoints / "checkpoint-5"
    kept.mkdir(parents=True)

    new = services.retry(old.id)

    assert new.spec == old.spec
    assert [path.name for path in services.folder(new.id).checkpoints.iterdir()] == ["checkpoint-5"]
    assert not kept.exists()
    with pytest.raises(Conflict, match="only a failed or cancelled job"):
        services.retry(new.id)


def test_a_folder_under_an_allowed_root_is_a_model(services: Services, sources: Path) -> None:
    found = services.catalog.model(str(sources / "tiny"))

    assert found.digest == services.catalog.model("org/tiny").digest


def test_a_folder_elsewhere_is_denied_naming_the_flag(services: Services, tmp_path: Path) -> None:
    tiny_llama(tmp_path / "elsewhere")

    with pytest.raises(Denied, match="--allow-path DIR"):
        services.catalog.model(str(tmp_path / "elsewhere"))


@pytest.mark.parametrize("name", ["~nobody-there/x", "x" * 5000, "org/" + "y" * 5000])
def test_what_cannot_be_a_folder_is_no_model(services: Services, name: str) -> None:
    with pytest.raises((NotFound, Invalid)):
        services.catalog.model(name)


def test_a_foreign_folder_is_denied_whether_it_exists_or_not(services: Services) -> None:
    for name in ("/etc", "/nowhere-at-all"):
        with pytest.raises(Denied):
            services.catalog.model(name)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "modeling_tiny.py", "weights.pkl"])
def test_a_folder_that_could_run_code_is_refused_by_name(services: Services, sources: Path, name: str) -> None:
    folder = tiny_llama(sources / f"bad-{name}")
    (folder / name).write_bytes(b"x")

    with pytest.raises(UnsafeFormat, match=name):
        services.catalog.add_model(folder, "bad")


def test_an_adapter_finds_its_base_and_keeps_it_from_being_removed(services: Services, sources: Path) -> None:
    adapter = services.catalog.add_model(sources / "adapter", "org/adapter", base="org/tiny")

    assert services.catalog.base_of(adapter).name == "org/tiny"  # type: ignore[arg-type]  # it is an Adapter
    with pytest.raises(Conflict, match="base of org/adapter"):
        services.remove("models", "org/tiny")
    services.remove("models", "org/adapter")
    services.remove("models", "org/tiny")
    assert services.servable() == []


def test_what_an_unfinished_job_uses_cannot_be_removed(services: Services) -> None:
    services.submit("train", SPEC)

    with pytest.raises(Conflict, match="used by a job"):
        services.remove("datasets", "rows")


def test_an_alias_means_the_same_model(services: Services) -> None:
    services.catalog.alias("org/tiny", "best")

    assert services.catalog.model("best").id == services.catalog.model("org/tiny").id


@pytest.mark.parametrize("folder", [".", "models", "./jobs/x", "../out", "/out", "results/../../out"])
def test_a_result_is_placed_neither_outside_nor_among_our_own(services: Services, folder: str) -> None:
    with pytest.raises(Denied):
        services.submit("train", SPEC | {"output_dir": folder})


def test_a_result_may_be_placed_in_the_workspace_and_under_an_allowed_root(services: Services, sources: Path) -> None:
    for folder in ("./results", str(sources / "out")):
        assert services.submit("train", SPEC | {"output_dir": folder}).spec["output_dir"] == folder

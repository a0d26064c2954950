from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from forge import ROWS, as_lines
from modelworks.app.dataset_files import dataset_called, dataset_name, file_name, uploaded
from modelworks.app.services import Services
from modelworks.app.wiring import open_app
from modelworks.core.config import Settings
from modelworks.core.errors import Denied, Invalid, NotFound
from modelworks.data.spec import ImportSpec


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    (tmp_path / "allowed").mkdir()
    app = open_app(Settings(home=tmp_path / "home", hub_offline=True, allow_paths=(tmp_path / "allowed",)))
    yield app.services
    app.close()


@pytest.mark.parametrize(
    ("sent", "name"),
    [("rows.jsonl", "rows"), (r"C:\data\my rows (1).jsonl.gz", "my-rows-1"), ("../../etc/x.json", "x"),
     ("", "dataset"), ("ünï", "n")],
)  # fmt: skip
def test_any_file_name_gives_a_name(sent: str, name: str) -> None:
    assert dataset_name(sent) == name


def test_a_dataset_is_found_by_its_name_its_id_and_its_file_s_name(services: Services, tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_bytes(as_lines(ROWS["chat"]))
    made, _ = services.catalog.upload(source, ImportSpec())

    assert file_name(made) == "rows.jsonl"
    for called in ("rows", made.id, "rows.jsonl"):
        assert dataset_called(services, called).id == made.id
    with pytest.raises(NotFound):
        dataset_called(services, "rows.csv")


def test_a_file_is_imported_once_for_each_content(services: Services, tmp_path: Path) -> None:
    path = tmp_path / "allowed" / "rows.jsonl"
    path.write_bytes(as_lines(ROWS["chat"]))
    first = dataset_called(services, str(path))
    path.with_name("copy").mkdir()
    copy = path.with_name("copy") / "rows.jsonl"
    copy.write_bytes(path.read_bytes())

    assert dataset_called(services, str(path)).id == dataset_called(services, str(copy)).id == first.id
    path.write_bytes(as_lines(ROWS["pairs"]))
    assert dataset_called(services, str(path)).format == "preference"
    assert [found.rows for found in uploaded(services)] == [20, 20]


def test_a_path_outside_is_denied_whether_it_is_there_or_not(services: Services, tmp_path: Path) -> None:
    (tmp_path / "secret.jsonl").write_bytes(as_lines(ROWS["chat"]))
    for name in ("secret.jsonl", "none.jsonl"):
        with pytest.raises(Denied, match="--allow-path"):
            dataset_called(services, str(tmp_path / name))
    with pytest.raises(Denied):
        dataset_called(services, str(tmp_path / "allowed" / ".." / "secret.jsonl"))


def test_a_file_that_cannot_be_read_is_no_dataset(services: Services, tmp_path: Path) -> None:
    path = tmp_path / "allowed" / "rows.jsonl"
    path.write_text("no JSON\n")

    with pytest.raises(Invalid):
        dataset_called(services, str(path))
    assert uploaded(services) == []

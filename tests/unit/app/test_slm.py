"""Which model is meant where no request names one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from doors import Door, open_door
from modelworks.app.slm import Chosen, choose
from modelworks.core.errors import Invalid, NotFound
from tiny import tiny_adapter, tiny_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bases, `a` and `b`; of each an adapter."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate("ab"):
        tiny_adapter(folder / f"on-{name}", tiny_llama(folder / name, seed=seed))
    return folder


@pytest.fixture
def door(tmp_path: Path, folder: Path) -> Iterator[Door]:
    with open_door(tmp_path / "home", allow_paths=(folder,)) as door:
        yield door


def add(door: Door, folder: Path, *names: str) -> None:
    for name in names:
        door.services.catalog.add_model(folder / name, name, base=name.removeprefix("on-") if "-" in name else None)


def chosen(door: Door, **settings: str) -> tuple[str, str | None]:
    door.services.settings = door.services.settings.model_copy(update=settings)
    found: Chosen = asyncio.run(choose(door.services))
    return found.base.name, found.adapter.name if found.adapter else None


def test_the_newest_adapter_of_the_named_base_is_meant(door: Door, folder: Path) -> None:
    add(door, folder, "a", "on-a", "b", "on-b")
    door.services.catalog.add_model(folder / "on-a", "newer", base="a")

    assert chosen(door, slm_base="a") == ("a", "newer")
    assert chosen(door, slm_base="b") == ("b", "on-b")


def test_a_base_that_is_here_is_meant_alone_where_it_has_no_adapter(door: Door, folder: Path) -> None:
    add(door, folder, "a", "on-a", "b")

    assert chosen(door, slm_base="b") == ("b", None)


def test_the_newest_adapter_of_all_is_meant_where_the_base_is_not_here(door: Door, folder: Path) -> None:
    add(door, folder, "a", "on-a", "b", "on-b")

    assert chosen(door) == ("b", "on-b")


def test_an_adapter_that_is_named_brings_its_own_base(door: Door, folder: Path) -> None:
    add(door, folder, "a", "on-a", "b", "on-b")

    assert chosen(door, slm_base="b", slm_adapter="on-a") == ("a", "on-a")


def test_a_named_adapter_that_is_not_here_or_none_is_an_error(door: Door, folder: Path) -> None:
    add(door, folder, "a", "on-a")

    with pytest.raises(NotFound, match=r"LoRA model not found: .*on-b"):
        chosen(door, slm_adapter="on-b")
    with pytest.raises(Invalid, match="a is a full model"):
        chosen(door, slm_adapter="a")


def test_without_any_model_the_error_says_what_to_do(door: Door) -> None:
    with pytest.raises(NotFound, match=r"LoRA model not found: .*'gpt2'; train one"):
        chosen(door)

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

from modelworks.cli.spec_flags import option_of, read_spec_file, values_of
from modelworks.core.errors import Invalid, NotFound
from modelworks.core.spec import Spec


class Wanted(Spec):
    base: str = Field(description="where to start")
    models: tuple[str, ...] = Field((), description="what to take")
    target: str | tuple[str, ...] = Field("all", description="one or several")
    rate: float | None = Field(None, gt=0, description="how fast")
    params: dict[str, object] = Field(default_factory=dict, description="further ones")
    columns: dict[str, str] = Field(default_factory=dict, description="names")
    device: Literal["cpu", "cuda"] = Field("cpu", description="where")
    replace: bool = Field(False, description="take over")


FIELDS = Wanted.model_fields


def test_options_say_what_the_fields_say() -> None:
    option = option_of("device", FIELDS["device"])

    assert option.opts == ["--device"]
    assert option.metavar == "cpu|cuda"
    assert option.help == "where  [default: cpu]"


def test_a_map_has_a_singular_flag_too() -> None:
    assert option_of("params", FIELDS["params"]).opts == ["--params", "--param"]


def test_a_list_has_a_singular_flag_too() -> None:
    assert option_of("models", FIELDS["models"]).opts == ["--models", "--model"]


def test_a_range_is_not_read_as_minutes_and_seconds() -> None:
    assert values_of(FIELDS, {"params": ("weights=0:1.5", "t=-1:1")}, {}) == {
        "params": {"weights": "0:1.5", "t": "-1:1"}
    }


def test_a_yes_or_no_can_be_switched_off() -> None:
    assert option_of("replace", FIELDS["replace"]).secondary_opts == ["--no-replace"]


def test_only_what_was_given_is_said() -> None:
    given = {"base": None, "models": (), "rate": "1e-4", "replace": False}

    assert values_of(FIELDS, given, {}) == {"rate": "1e-4", "replace": False}


def test_values_of_maps_are_read_as_yaml_and_go_over_the_files() -> None:
    given = {"params": ("density=0.3", "names=[a, b]"), "columns": ("instruction=question,output=answer",)}

    values = values_of(FIELDS, given, {"params": {"density": 0.9, "kept": True}})

    assert values == {
        "params": {"density": 0.3, "kept": True, "names": ["a", "b"]},
        "columns": {"instruction": "question", "output": "answer"},
    }


def test_one_value_stays_one_where_one_or_several_may_stand() -> None:
    assert values_of(FIELDS, {"target": ("all",)}, {}) == {"target": "all"}
    assert values_of(FIELDS, {"target": ("q", "v")}, {}) == {"target": ("q", "v")}


def test_a_pair_without_an_equals_sign_is_refused() -> None:
    with pytest.raises(Invalid, match="--params: 'density' is not KEY=VALUE"):
        values_of(FIELDS, {"params": ("density",)}, {})


def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- a\n")
    (tmp_path / "broken.yaml").write_text("a: [1\n")

    with pytest.raises(Invalid, match="holds a list"):
        read_spec_file(str(tmp_path / "list.yaml"))
    with pytest.raises(Invalid, match="is not YAML"):
        read_spec_file(str(tmp_path / "broken.yaml"))
    with pytest.raises(NotFound, match=r"there is no file .*none\.yaml"):
        read_spec_file(str(tmp_path / "none.yaml"))

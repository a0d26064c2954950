"""What a folder of entries says: config.json with comments, defaults, and what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from entries import entries_folder
from modelworks.core.errors import Invalid, NotFound
from modelworks.serve.entries import ModelServerEntry, class_of, read_entries, shorten, without_comments

EXAMPLE = Path(__file__).parents[3] / "examples" / "entries"


def test_comments_go_and_strings_that_look_like_them_stay() -> None:
    text = '{"a": "http://x//y", // why\n "b": "a \\" // quote"}//end\n'

    assert without_comments(text) == '{"a": "http://x//y", \n "b": "a \\" // quote"}\n'


def test_an_entry_has_its_class_its_parameters_and_its_batch_size(tmp_path: Path) -> None:
    entries = read_entries(entries_folder(tmp_path / "own"), 8)

    assert list(entries) == ["scripted", "sick", "slow", "lost", "narrow", "patient"]
    assert entries["scripted"].params == [str(tmp_path / "own"), "http://hello"]
    assert entries["sick"].params == {"folder": str(tmp_path / "own"), "greeting": "raise at activate"}
    assert [entry.batch_size for entry in entries.values()] == [8, 8, 8, 8, 2, 8]


def test_the_example_can_be_read() -> None:
    assert {entry.class_name for entry in read_entries(EXAMPLE, 8).values()} == {"EchoEntry", "TransformersEntry"}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('{"a": {"name": "X", // cut\n', r"config.json: .*line 2"),
        ("[]", "internal_name"),
        ('{"a": "X"}', "internal_name"),
        ('{"a": {"params": []}}', "name: Field required"),
        ('{"a": {"name": "X", "parms": []}}', "did you mean params"),
        ('{"a": {"name": "X", "params": "path"}}', "params"),
        ('{"a b": {"name": "X"}}', "'a b' is not a name"),
        ('{"a": {"name": "X", "batch_size": 0}}', "batch_size"),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused_with_its_place(tmp_path: Path, config: str, said: str) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "config.json").write_text(config)

    with pytest.raises(Invalid, match=said):
        read_entries(tmp_path, 8)


def test_a_folder_without_config_or_models_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"config\.json is missing"):
        read_entries(tmp_path, 8)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(NotFound, match="models is missing"):
        read_entries(tmp_path, 8)


def test_a_class_that_the_package_lacks_is_refused_with_those_it_has(tmp_path: Path) -> None:
    entry = read_entries(entries_folder(tmp_path / "own"), 8)["lost"]

    class Other(ModelServerEntry):
        pass

    package = SimpleNamespace(ModelServerEntry=ModelServerEntry, Other=Other, Scriptd="a string", helper=len)
    with pytest.raises(Invalid, match=r"'Scriptd', which the package `models` lacks; it has Other$"):
        class_of(entry, package)
    with pytest.raises(Invalid, match=r"import yours in models/__init__.py"):
        class_of(entry, SimpleNamespace())


def test_an_answer_ends_at_a_stop_text_or_after_so_many_words() -> None:
    assert shorten("one two\nthree", ("\n", "three"), None) == ("one two", False)
    assert shorten("  one  two three ", (), 2) == ("  one  two", True)
    assert shorten(" one two ", (), 2) == (" one two ", False)

"""`upload`, `modelworks datasets` and `modelworks models`: what is in the workspace."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modelworks.cli import render
from modelworks.cli.options import Command, Group, Session, pass_session
from modelworks.core.errors import Invalid, NotFound

if TYPE_CHECKING:
    from modelworks.app.catalog import Shelf
    from modelworks.core.nouns import AnyArtifact

BAR_WIDTH = 40


@click.command(
    cls=Command, name="upload", short_help="Import a file or folder of rows as a dataset.",
    example=(
        "modelworks upload rows.jsonl --name shell",
        "modelworks upload rows.csv --name faq --columns instruction=question,output=answer",
        "modelworks upload rows.jsonl --dry-run --model smollm2-135m --max-length 512",
    ),
)  # fmt: skip
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", help="Name of the dataset.  [default: the file's]")
@click.option("--format", help="alpaca, messages, sharegpt, preference, text ...  [default: look]")
@click.option("--columns", multiple=True, metavar="KEY=COLUMN", help="Where the format's columns are; repeat for more.")
@click.option("--validation-share", metavar="X", help="Share of rows held out.  [default: 0.1]")
@click.option("--seed", metavar="N", help="Another seed holds out other rows.  [default: 0]")
@click.option("--on-bad-rows", metavar="fail|skip", help="fail: refuse a file with many bad rows.  [default: fail]")
@click.option("--drop-duplicates", is_flag=True, help="Leave out rows that repeat an earlier one.")
@click.option("--replace", is_flag=True, help="Move the name from an older dataset to this one.")
@click.option("--model", "--preview", metavar="MODEL", help="Then show lengths and samples as MODEL reads them.")
@click.option(
    "--max-length", metavar="N", help="Tokens kept of a row, to see what is cut.  [default: as in a training]"
)
@click.option("--dry-run", is_flag=True, help="Only look: keep nothing.")
@pass_session
def upload(session: Session, file: Path, columns: tuple[str, ...], **given: str | bool | None) -> None:
    """Import rows (JSONL, JSON, CSV, TSV, Parquet, text; also .gz, or a folder of such files) as a dataset."""
    from modelworks.app.uploads import import_upload

    if not file.exists():
        raise NotFound(f"there is no file {file}")
    options = {key: str(value) for key, value in given.items() if value not in (None, False)}
    if columns:
        options["columns"] = json.dumps(dict(_column(part) for text in columns for part in text.split(",")))
    imported = import_upload(session.services, file, file.absolute().name, options)
    report = imported.report
    if session.json:
        render.print_json(imported)
        return
    name = "dry run" if imported.dataset is None else imported.dataset.name
    click.echo(
        f"{name}  {report.format}, {report.train_rows:,} rows to train on, {report.validation_rows:,} held "
        f"out; left out: {report.empty_rows:,} empty, {report.bad_rows:,} bad"
    )
    for line in (*report.notes, *report.problems):
        session.say(f"  {line}")
    if given["model"] or given["dry_run"]:
        _print_preview(imported.preview)


def _column(text: str) -> tuple[str, str]:
    key, equals, column = text.partition("=")
    if not equals:
        raise Invalid(f"--columns: {text!r} is not KEY=COLUMN, e.g. instruction=question")
    return key.strip(), column.strip()


@click.group(cls=Group, name="datasets", example="modelworks datasets preview shell --model smollm2-135m")
def datasets() -> None:
    """List, look at and remove datasets."""


@datasets.command(name="ls", example="modelworks datasets ls --json")
@pass_session
def list_datasets(session: Session) -> None:
    """List datasets, newest first."""
    found = session.services.catalog.datasets()
    rows = [
        [item.name, item.format, item.train_rows, item.validation_rows, render.size(item.size_bytes),
         render.when(item.created_at)]
        for item in found
    ]  # fmt: skip
    headings = ("name", "format", "train", "held out", "size", "created")
    session.answers(found, headings, rows, empty="no datasets yet: modelworks upload FILE --name NAME")


@datasets.command(name="show", example="modelworks datasets show shell --json")
@click.argument("name")
@pass_session
def show_dataset(session: Session, name: str) -> None:
    """Show a dataset: its format, rows, files and where it came from."""
    _print_artifact(session, session.services.catalog.dataset(name))


@datasets.command(
    name="preview",
    short_help="Show lengths, what is cut, and rows as a model reads them.",
    example="modelworks datasets preview shell --model smollm2-135m",
)
@click.argument("name")
@click.option("--model", metavar="MODEL", help="Count tokens and render samples as MODEL reads them.")
@click.option(
    "--max-length", type=click.IntRange(min=2), metavar="N", help="Tokens kept of a row.  [default: as in a training]"
)
@pass_session
def preview_dataset(session: Session, name: str, model: str | None, max_length: int | None) -> None:
    """Show how long rows are, what a training would cut off, and some rows; what is learned is marked."""
    found = session.services.catalog.preview(name, model, max_length)
    if session.json:
        render.print_json(found)
    else:
        _print_preview(found)


@datasets.command(name="rm", example="modelworks datasets rm shell")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@pass_session
def remove_datasets(session: Session, names: tuple[str, ...]) -> None:
    """Forget datasets and free their space."""
    _remove(session, "datasets", names)


@click.group(cls=Group, name="models", example="modelworks models show mine/both --lineage")
def models() -> None:
    """List, look at, add, name and remove models and adapters."""


@models.command(name="ls", example="modelworks models ls --json")
@pass_session
def list_models(session: Session) -> None:
    """List models and adapters, newest first."""
    found = session.services.servable()
    rows = [
        [item.name, item.kind.value, item.parameters, render.size(item.size_bytes), getattr(item, "base_name", "-"),
         render.when(item.created_at)]
        for item in found
    ]  # fmt: skip
    headings = ("name", "kind", "parameters", "size", "base", "created")
    session.answers(found, headings, rows, empty="no models yet: modelworks pull smollm2-135m")


@models.command(name="show", example=("modelworks models show mine/both --lineage", "modelworks models show X --json"))
@click.argument("name")
@click.option("--lineage", is_flag=True, help="Show what it was made from, and how.")
@pass_session
def show_model(session: Session, name: str, lineage: bool) -> None:
    """Show a model or adapter; with --json its folder is `path`."""
    catalog = session.services.catalog
    if not lineage:
        _print_artifact(session, catalog.model(name))
    elif session.json:
        render.print_json(catalog.lineage(name))
    else:
        render.show(render.lineage(catalog.lineage(name)))


@models.command(name="add", example="modelworks models add ./checkpoint --name mine/model")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="NAME or ORG/NAME to register it under.")
@click.option("--replace", is_flag=True, help="Move the name from an older model to this one.")
@pass_session
def add_model(session: Session, folder: Path, name: str, replace: bool) -> None:
    """Copy a checkpoint or adapter folder into the workspace."""
    if not folder.is_dir():
        raise NotFound(f"there is no folder {folder}")
    # Whoever types the folder's path here may read it: it needs no --allow-path beside it.
    session.flags["allow_paths"] = (*session.settings.allow_paths, folder.absolute())
    del session.loaded
    added = session.services.catalog.add_model(folder, name, replace=replace)
    session.answer(added, f"{added.name}  {added.kind.value} {added.digest[:12]}, {render.size(added.size_bytes)}")


@models.command(name="alias", example="modelworks models alias mine/both latest")
@click.argument("name")
@click.argument("alias")
@pass_session
def alias_model(session: Session, name: str, alias: str) -> None:
    """Let ALIAS mean what NAME means; a name in use is moved."""
    found = session.services.catalog.alias(name, alias)
    facts = {"alias": alias, "id": found.id, "name": found.name}
    session.answer(facts, f"{alias}  means {found.name} ({found.digest[:12]})")


@models.command(name="rm", example="modelworks models rm mine/both")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@pass_session
def remove_models(session: Session, names: tuple[str, ...]) -> None:
    """Forget models or adapters and free their space."""
    _remove(session, "models", names)


def _remove(session: Session, shelf: Shelf, names: Sequence[str]) -> None:
    for name in names:
        removed = session.services.remove(shelf, name)
        session.answer(removed, f"{removed.name}  removed, {render.size(removed.size_bytes)}")


def _print_artifact(session: Session, found: AnyArtifact) -> None:
    if session.json:
        render.print_json(found)
        return
    facts: dict[str, object] = {**vars(found)}
    for key in ("size_bytes", "files", "parents", "recipe", "metrics", "kind"):
        facts.pop(key)
    facts["kind"], facts["size"] = found.kind.value, render.size(found.size_bytes)
    facts |= {f"metrics.{key}": value for key, value in found.metrics.items()}
    facts |= {f"recipe.{key}": value for key, value in found.recipe.items()}
    facts["made from"] = "\n".join(f"{parent.role} {parent.name} {parent.digest[:12]}" for parent in found.parents)
    facts["files"] = "\n".join(
        f"{file.path}  {render.size(file.size_bytes)}  {file.sha256[:12]}" for file in found.files
    )
    if "notes" in facts:
        facts["notes"] = "\n".join(getattr(found, "notes", ()))
    render.print_facts(facts)


def _print_preview(preview: Any) -> None:  # a Preview, which belongs to data
    from rich.text import Text

    click.echo(
        f"{preview.rows_measured:,} rows measured, in {preview.unit}: half up to {preview.p50:,}, "
        f"95 of 100 up to {preview.p95:,}, 99 up to {preview.p99:,}, the longest {preview.max:,}"
    )
    most = max(bucket.rows for bucket in preview.buckets)
    for bucket in preview.buckets:
        bar = "█" * -(-bucket.rows * BAR_WIDTH // most)
        click.echo(f"{bucket.at_least:>8,} to {bucket.below - 1:>8,}  {bar} {bucket.rows:,}")
    if preview.max_length is not None:
        click.echo(
            f"cut at {preview.max_length:,} tokens: {preview.truncated_rows:,} rows lose their end, "
            f"{preview.masked_rows:,} have nothing left to learn"
        )
    click.echo("\nRows as they are read; what is learned is ⟦underlined⟧, what is cut off is struck out:")
    for number, parts in enumerate(preview.samples, start=1):
        sample = Text(f"--- {number} ---\n", style="dim")
        for part in parts:
            style = "strike dim" if part.cut else "underline green" if part.learned else "none"
            # The brackets stay where there are no colours.
            sample.append(f"⟦{part.text}⟧" if part.learned and not part.cut else part.text, style=style)
        render.show(sample)

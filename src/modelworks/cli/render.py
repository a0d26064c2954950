"""How nouns look on a terminal, and as JSON. Data goes to stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TextIO

import click

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.tree import Tree

    from modelworks.app.catalog import LineageNode

# Wide enough for any name: what is piped on must not be cut.
PIPE_COLUMNS = 240
# What of a recipe tells one model from its sisters; the rest is in --json.
KEY_SETTINGS = (
    "source", "revision", "strategy", "tuning", "method", "params", "dataset", "num_train_epochs", "max_steps",
    "learning_rate", "lora_r", "validation_share", "seed",
    "origin", "note",
)  # fmt: skip


def console(stream: TextIO | None = None) -> Console:
    """A console on stdout, or on `stream`."""
    from rich.console import Console

    stream = stream or sys.stdout
    return Console(file=stream, highlight=False, width=None if stream.isatty() else PIPE_COLUMNS)


def show(renderable: RenderableType) -> None:
    console().print(renderable)


def to_json(value: object) -> str:
    """One line of JSON of any noun."""
    from pydantic_core import to_jsonable_python

    return json.dumps(to_jsonable_python(value), ensure_ascii=False)


def print_json(value: object) -> None:
    click.echo(to_json(value))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str = "") -> None:
    """Print rows below headings; numbers stand to the right. Without rows, tell `empty` on stderr."""
    from rich.table import Table
    from rich.text import Text

    listed = [list(row) for row in rows]
    if not listed and empty:
        click.echo(empty, err=True)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, heading in enumerate(headings):
        numeric = bool(listed) and all(isinstance(row[index], int | float | None) for row in listed)
        table.add_column(heading, justify="right" if numeric else "left", no_wrap=True)
    for row in listed:
        table.add_row(*(Text(text_of(cell)) for cell in row))
    show(table)


def print_facts(facts: Mapping[str, object]) -> None:
    """Print one noun as lines `key  value`; absent values are left out."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in facts.items():
        if value not in (None, "", (), [], {}):
            table.add_row(key.replace("_", " "), Text(text_of(value)))
    show(table)


def text_of(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, datetime):
        return when(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={text_of(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(text_of(inner) for inner in value)
    return str(value)


def when(moment: datetime | None) -> str:
    return "-" if moment is None else moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def size(count: int) -> str:
    """Bytes as people read them, in powers of 1000."""
    amount, unit = float(count), "B"
    for bigger in ("kB", "MB", "GB", "TB"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, bigger
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"


def duration(seconds: float) -> str:
    whole = round(seconds)
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def evaluation(result: Mapping[str, Any]) -> tuple[list[str], list[list[object]]]:
    """The table of an evaluation: a line for each model, the metrics of each dataset beside each other."""
    rows, columns = result["rows"], result["columns"]
    models = list(dict.fromkeys(row["model"] for row in rows))
    datasets = list(dict.fromkeys(row["dataset"] for row in rows))
    cells = {(row["model"], row["dataset"]): row for row in rows}
    used = [
        (dataset, column)
        for dataset in datasets
        for column in columns
        if any(cells[model, dataset].get(column) is not None for model in models)
    ]
    headings = ["model", *(f"{dataset}\n{column}" for dataset, column in used)]
    lines = [[model, *(cells[model, dataset].get(column) for dataset, column in used)] for model in models]
    return headings, lines


def leaderboard(result: Mapping[str, Any]) -> tuple[list[str], list[list[object]]]:
    """The table of a search: a line for each trial, best first; what it met, where, and how long it took."""
    rows = result["leaderboard"]
    goals = [goal["name"] for goal in result["goals"]]
    paths = list(dict.fromkeys(path for row in rows for path in row["point"]))
    front = ["front"] if len(goals) > 1 else []
    headings = ["rank", "trial", *goals, *front, *paths, "seconds", ""]
    lines = [
        [row["rank"], row["trial"], *(row["goals"][goal] for goal in goals), *(row[f"on_{name}"] for name in front),
         *(row["point"].get(path) for path in paths), row["seconds"],
         row.get("problem") or ("the recipe as it stands" if row["trial"] == 0 else "")]
        for row in rows
    ]  # fmt: skip
    return headings, lines


def sweep(result: Mapping[str, Any]) -> tuple[list[str], list[list[object]]]:
    """The table of a sweep: a line for each training, best first; its values, what it came to, and what went wrong."""
    rows, chosen = result["table"], result.get("metric")
    values = list(dict.fromkeys(field for row in rows for field in row["values"]))
    measured = dict.fromkeys(name for row in rows for name in row["metrics"])
    metrics = [name for name in dict.fromkeys([chosen, *measured]) if name in measured]
    headings = ["rank", "name", *values, *metrics, "seconds", ""]
    lines = [
        [rank, row["name"], *(row["values"].get(field) for field in values),
         *(row["metrics"].get(name) for name in metrics), row["seconds"],
         row.get("problem") or ("" if row["state"] == "succeeded" else row["state"])]
        for rank, row in enumerate(rows, start=1)
    ]  # fmt: skip
    return headings, lines


# By kind of job, the table that its result is.
TABLES: Mapping[str, Callable[[Mapping[str, Any]], tuple[list[str], list[list[object]]]]] = {
    "evaluate": evaluation, "search": leaderboard, "sweep": sweep,
}  # fmt: skip


def lineage(node: LineageNode) -> Tree:
    """A family tree: under each artifact what it was made from."""
    from rich.tree import Tree

    tree = Tree(_describe(node), guide_style="dim")
    _grow(tree, node)
    return tree


def _grow(tree: Tree, node: LineageNode) -> None:
    for parent in node.parents:
        _grow(tree.add(_describe(parent)), parent)


def _describe(node: LineageNode) -> RenderableType:
    from rich.text import Text

    line = Text()
    if node.role != "self":
        line.append(f"{node.role} ", style="cyan")
    line.append(node.name, style="bold")
    line.append(f"  {node.kind} {node.digest[:12]}", style="dim")
    if node.job_id:
        line.append(f"  job {node.job_id}", style="dim")
    spec = node.recipe.get("spec")
    recipe = node.recipe | (spec if isinstance(spec, dict) else {})
    settings = {key: recipe[key] for key in KEY_SETTINGS if recipe.get(key) not in (None, "", {}, [])}
    for facts in (settings, node.metrics):
        if facts:
            line.append(f"\n{text_of(facts)}")
    return line

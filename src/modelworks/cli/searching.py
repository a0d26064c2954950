"""`modelworks merge search`: find the weights and densities of a merge, as a job."""

from __future__ import annotations

from typing import Any

import click

from modelworks.cli.options import Session, pass_session
from modelworks.cli.run import queueing_options, submit, waiting_options
from modelworks.cli.spec_flags import SpecCommand, read_spec_file


@click.command(
    cls=SpecCommand, kind="search", positional="recipe", name="search", short_help="Find a merge's best weights.",
    example=(
        "modelworks merge search recipe.yaml --metric perplexity --trials 20 --dataset shell --name mine/best",
        "modelworks merge search recipe.yaml --dataset shell --space weights=0:1.5 --space density=0.1:1",
    ),
)  # fmt: skip
@click.argument("recipe", metavar="RECIPE.yaml")
@queueing_options
@waiting_options
@pass_session
def search(session: Session, body: dict[str, Any], **asked: Any) -> None:
    """Find the weights and densities with which a merge does best on held-out rows, and publish that merge.

    The file is a merge's spec or mergekit's file, or a search's with the merge under `recipe`. Options go over it.
    """
    from modelworks.app.folder_merging import read_merge

    read: dict[str, Any] = dict(read_spec_file(body.pop("recipe")))
    whole = read if isinstance(read.get("recipe"), dict) else {"recipe": read}
    whole["recipe"], notes = read_merge(whole["recipe"])
    for note in notes:
        session.say(f"note: {note}")
    submit(session, "search", whole | body, **asked)

"""`modelworks export`: a model as one file for other programs, here and now or as a job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from modelworks.cli import render
from modelworks.cli.follow import show_progress
from modelworks.cli.options import Session, pass_session
from modelworks.cli.run import queueing_options, submit, waiting_options
from modelworks.cli.spec_flags import SpecCommand


@click.command(
    cls=SpecCommand, kind="export", positional="model", name="export", short_help="Write a model as one GGUF file.",
    example=("modelworks export me/first --to gguf --dtype q8_0 --out first.gguf", "modelworks export me/first"),
)  # fmt: skip
@click.argument("model")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Write it there, here and now.")
@click.option("--overwrite", is_flag=True, help="With --out: replace a file that is there.")
@queueing_options
@waiting_options
@pass_session
def export(session: Session, body: dict[str, object], out: Path | None, overwrite: bool, **asked: Any) -> None:
    """Write a model, or an adapter folded into its base, as one file that llama.cpp reads.

    With --out into FILE; else as a job that keeps the file under a name, which MODEL may then be too.
    """
    if out is None:
        submit(session, "export", body, **asked)
        return
    from modelworks.app.exporting import export_file

    services = session.services
    with show_progress(session, "export") as tell:
        export_file(
            services, body, out, lambda done, total: tell({"done": done, "total": total, "unit": "bytes"}),
            overwrite=overwrite,
        )  # fmt: skip
    size = out.stat().st_size
    session.answer({"path": str(out), "bytes": size}, f"{out}  {render.size(size)}")

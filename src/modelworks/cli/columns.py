"""Answers of several models as they come, in columns beside each other."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from modelworks.cli import render

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

NARROWEST = 72


def are_wide_enough() -> bool:
    """Whether this terminal has room for two."""
    return sys.stdout.isatty() and render.console().width >= NARROWEST


class Columns:
    """While it is entered, `tell` grows a column; whole ones stay when it ends."""

    def __init__(self, headings: Sequence[str]) -> None:
        self._headings = headings
        self._texts = [""] * len(headings)
        self._console = render.console()
        self._live: Live | None = None

    def __enter__(self) -> Columns:
        from rich.live import Live

        self._live = Live(
            console=self._console, get_renderable=self._ends, refresh_per_second=12, transient=True,
            redirect_stdout=False, redirect_stderr=False,
        )  # fmt: skip
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
        self._console.print(self.table())

    def tell(self, side: int, text: str) -> None:
        self._texts[side] += text

    def _ends(self) -> Table:
        # What goes beyond the screen cannot be taken back.
        return self.table(max(1, self._console.height - 3))

    def table(self, lines: int | None = None) -> Table:
        """All of it, or the last lines."""
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, expand=True, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for heading in self._headings:
            table.add_column(Text(heading), ratio=1, overflow="fold")
        width = self._console.width // len(self._headings) - 2
        cells = [Text(text) for text in self._texts]
        if lines is not None:
            cells = [Text("\n").join(cell.wrap(self._console, width)[-lines:]) for cell in cells]
        table.add_row(*cells)
        return table

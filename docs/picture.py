"""Draw docs/demo.svg from what a demo printed: `make demo | tee demo.log`, then `python docs/picture.py demo.log`."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

# Progress is for those who wait; the picture shows what came of it.
LEFT_OUT = re.compile(r"^(train|merge|evaluate|pull): |^\s*$")
COLUMNS = 124


def main() -> None:
    printed = Path(sys.argv[1]).read_text(encoding="utf-8")
    shown = printed[printed.index("6. Measure") : printed.index("Nothing is left running")]
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    for line in shown.splitlines():
        if LEFT_OUT.match(line):
            continue
        # An SVG drops blanks at the start of a line, but not these.
        line = re.sub(r"^ +", lambda blanks: "\u00a0" * len(blanks.group()), line)
        heading = re.match(r"^\d\. |^Done in", line)
        console.print(
            Text(line, style="bold cyan" if heading else "dim" if line.startswith("$ ") else ""), no_wrap=True
        )
    console.save_svg(str(Path(__file__).parent / "demo.svg"), title="make demo")


if __name__ == "__main__":
    main()

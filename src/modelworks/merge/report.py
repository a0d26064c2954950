"""What a merge learnt of its models, for people: a table in the card, a heat map, and the numbers as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path

from modelworks.core.nouns import JsonObject
from modelworks.core.svg import page
from modelworks.merge.findings import Findings

REPORT, PICTURE = "merge_report.json", "merge_report.svg"
_escape = partial(escape, quote=False)
_CELL_WIDTH, _CELL_HEIGHT, _LEFT, _TOP = 92, 16, 90, 58


@dataclass(frozen=True)
class _Column:
    heading: str
    values: list[float]
    # What is shown in the darkest colour.
    most: float


def write_report(folder: Path, findings: Findings) -> list[str]:
    """Write both files, and return what the card says of them; nothing where there was no base to compare with."""
    rows = findings.table()
    if not rows:
        return []
    facts: JsonObject = {
        "share_looked_at": round(findings.share_seen, 3),
        **findings.as_json(),
        "layers": list(rows),
    }
    (folder / REPORT).write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    groups = [str(row["group"]) for row in rows]
    (folder / PICTURE).write_text(heat_map(groups, _columns(findings.labels, rows)), encoding="utf-8")
    return list(_card_lines(findings))


def _columns(labels: Sequence[str], rows: Sequence[JsonObject]) -> list[_Column]:
    norms = [row["relative_norms"] for row in rows]
    by_model = [[float(row.get(label, 0.0)) for row in norms if isinstance(row, dict)] for label in labels]  # type: ignore[arg-type] # we wrote them: numbers
    most = max((value for values in by_model for value in values), default=0.0) or 1.0
    found = [_Column(f"|d| / |b| of\n{label}", values, most) for label, values in zip(labels, by_model, strict=True)]
    for heading, key in (("sign conflicts", "sign_conflicts"), ("changed", "kept")):
        found.append(_Column(heading, [float(row[key]) for row in rows], 1.0))  # type: ignore[arg-type] # the same
    return found


def heat_map(rows: Sequence[str], columns: Sequence[_Column]) -> str:
    """A picture as SVG: a row a layer, a column a measure, darker for more; every cell tells its number."""
    width = _LEFT + _CELL_WIDTH * len(columns) + 10
    height = _TOP + _CELL_HEIGHT * len(rows) + 10
    body: list[str] = []
    for place, column in enumerate(columns):
        x = _LEFT + place * _CELL_WIDTH
        for line, text in enumerate(column.heading.split("\n")):
            body.append(f'<text x="{x + 2}" y="{_TOP - 20 + 12 * line}">{_escape(_short(text))}</text>')
        for row, value in enumerate(column.values):
            share = min(1.0, value / column.most)
            y = _TOP + row * _CELL_HEIGHT
            # From near white to a deep blue; the number in what can be read on it.
            red, green, blue = (
                round(light + share * (dark - light)) for light, dark in ((244, 8), (248, 48), (252, 107))
            )
            body.append(
                f'<rect x="{x}" y="{y}" width="{_CELL_WIDTH - 2}" height="{_CELL_HEIGHT - 1}" '
                f'fill="rgb({red},{green},{blue})"><title>{_escape(rows[row])}, {_escape(column.heading)}: '
                f'{value:.4g}</title></rect><text x="{x + 4}" y="{y + 11}" fill="{"#fff" if share > 0.5 else "#222"}">'
                f"{value:.3g}</text>"
            )
    names = (
        f'<text x="4" y="{_TOP + row * _CELL_HEIGHT + 11}">{_escape(name)}</text>' for row, name in enumerate(rows)
    )
    return page(width, height, [*body, *names], font_size=10)


def _short(text: str) -> str:
    """The end of a name says more than its beginning."""
    return text if len(text) <= 15 else "…" + text[-14:]


def _card_lines(findings: Findings) -> Iterator[str]:
    yield from ("## What was merged", "")
    yield f"Measured on {findings.share_seen:.0%} of the elements, spread evenly; layer by layer below."
    yield from ("", "| model | norm of its task vector |", "|---|---|")
    for label, norm in findings.norms().items():
        yield f"| {label} | {norm:g} |"
    if cosines := findings.cosines():
        yield from ("", "| task vectors | cosine |", "|---|---|")
        yield from (f"| {pair} | {cosine:g} |" for pair, cosine in cosines.items())
    yield from ("", f"![Norms relative to the base, sign conflicts and changed elements by layer]({PICTURE})", "")

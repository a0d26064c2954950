"""Pictures as SVG: a page, and a plane with axes to draw on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

WIDTH, HEIGHT, _LEFT, _BOTTOM, _MARGIN = 640, 360, 64, 44, 16


def page(width: int, height: int, body: Iterable[str], font_size: int = 11) -> str:
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="{font_size}" fill="#222">'
    )
    return "\n".join([head, f'<rect width="{width}" height="{height}" fill="#fff"/>', *body, "</svg>", ""])


class Plane:
    """Where values lie on WIDTH x HEIGHT."""

    def __init__(self, across: Sequence[float], up: Sequence[float]) -> None:
        self._x, self._y = _Scale(across), _Scale(up)

    def place(self, x: float, y: float) -> str:
        left = _LEFT + self._x.share(x) * (WIDTH - _LEFT - _MARGIN)
        return f"{left:.1f},{HEIGHT - _BOTTOM - self._y.share(y) * (HEIGHT - _BOTTOM - _MARGIN):.1f}"

    def frame(self, across: str, up: str) -> list[str]:
        bottom, middle = HEIGHT - _BOTTOM, (HEIGHT - _BOTTOM) / 2
        x, y = self._x, self._y
        return [
            f'<path d="M{_LEFT},{_MARGIN}V{bottom}H{WIDTH - _MARGIN}" fill="none" stroke="#888"/>',
            f'<text x="{_LEFT}" y="{bottom + 16}">{x.low:.4g}</text>',
            f'<text x="{WIDTH - _MARGIN}" y="{bottom + 16}" text-anchor="end">{x.high:.4g}</text>',
            f'<text x="{(_LEFT + WIDTH) / 2}" y="{bottom + 32}" text-anchor="middle">{escape(across)}</text>',
            f'<text x="{_LEFT - 6}" y="{bottom}" text-anchor="end">{y.low:.4g}</text>',
            f'<text x="{_LEFT - 6}" y="{_MARGIN + 8}" text-anchor="end">{y.high:.4g}</text>',
            f'<text transform="translate(14,{middle}) rotate(-90)" text-anchor="middle">{escape(up)}</text>',
        ]

    def line(self, points: Iterable[tuple[float, float]], colour: str, width: float = 1, title: str = "") -> str:
        told = f"<title>{escape(title)}</title>" if title else ""
        drawn = " ".join(self.place(*point) for point in points)
        return f'<polyline fill="none" stroke="{colour}" stroke-width="{width:g}" points="{drawn}">{told}</polyline>'


class _Scale:
    """One direction; what lies more than ten times as far above the least as the median is drawn at the end."""

    def __init__(self, values: Sequence[float]) -> None:
        ordered = sorted(values)
        self.low = ordered[0]
        most = self.low + 10 * (ordered[len(ordered) // 2] - self.low)
        self.high = max(value for value in ordered if value <= most) if most > self.low else ordered[-1]
        if math.isclose(self.low, self.high):
            self.high = self.low + (abs(self.low) or 1.0) / 10

    def share(self, value: float) -> float:
        return min(1.0, (value - self.low) / (self.high - self.low))

"""The report of a run: a Markdown table, and a plot of every ratio."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from html import escape

from benchmarks.measure import HEADER, Row

_HEIGHT, _LEFT, _WIDTH = 22, 520, 420


def write_report(folder: str, title: str, rows: Sequence[Row]) -> str:
    """Write ``report.md`` and ``ratios.svg`` into a folder; return the path of the first."""
    os.makedirs(folder, exist_ok=True)
    ratios = [row for row in rows if row.unit == "x" and row.values]
    with open(os.path.join(folder, "ratios.svg"), "w") as file:
        file.write(plot(ratios))
    lines = [
        f"# Benchmarks\n\n{title}\n",
        "Each ratio is taken round by round; the mark is the median, the bar goes from the lowest "
        "to the highest.\n",
        "![Every ratio](ratios.svg)\n",
        HEADER,
        *(row.text() for row in rows),
    ]
    path = os.path.join(folder, "report.md")
    with open(path, "w") as file:
        file.write("\n".join(lines) + "\n")
    return path


def plot(rows: Sequence[Row]) -> str:
    """Return ratios as an SVG picture: a bar from lowest to highest, and a mark at the median."""
    largest = max([1.0, *(max(row.values) for row in rows)])
    height = _HEIGHT * (len(rows) + 2)

    def x(value: float) -> float:
        return _LEFT + _WIDTH * value / largest

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 80}" '
        f'height="{height}" font-family="sans-serif" font-size="12">',
        f'<rect width="100%" height="100%" fill="white"/>'
        f'<line x1="{x(1):.1f}" x2="{x(1):.1f}" y1="10" y2="{height - 10}" stroke="#999" '
        'stroke-dasharray="3"/>',
    ]
    for number, row in enumerate(rows):
        y = _HEIGHT * (number + 1)
        name = f"{row.name}, against {row.against}" if row.against else row.name
        low, middle, high = min(row.values), statistics.median(row.values), max(row.values)
        parts.append(
            f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{escape(name)}</text>'
            f'<line x1="{x(low):.1f}" x2="{x(high):.1f}" y1="{y}" y2="{y}" stroke="#7aa6d8" '
            'stroke-width="7"/>'
            f'<circle cx="{x(middle):.1f}" cy="{y}" r="4" fill="#1b4f8a"/>'
            f'<text x="{x(high) + 8:.1f}" y="{y + 4}">{middle:.3g} x</text>'
        )
    return "\n".join([*parts, "</svg>"])

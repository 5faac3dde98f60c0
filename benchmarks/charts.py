"""Draw the charts of the documentation from the figures that the other programs here have measured.

    .venv/bin/python benchmarks/charts.py           write the pictures to docs/images
    .venv/bin/python benchmarks/charts.py --check   list the pictures that differ, and exit with 1

``figures.json`` has the figures. After a new run, change them there, and in the tables of docs/topics/performance.md.
Each picture is drawn for a light and for a dark page. So are the diagrams: ``*.template.svg`` in docs/images, in which
``$text`` and the other fields of a theme stand for colours.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

BENCHMARKS = Path(__file__).resolve().parent
IMAGES = BENCHMARKS.parent / "docs" / "images"

FONT = "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"

MARGIN = 16
PANEL_GAP = 36
TITLE_HEIGHT = 46
BAR_HEIGHT = 16
BAR_GAP = 9
PANEL_GAP_BELOW = 26
# Enough for a value in bold behind the longest bar.
VALUE_WIDTH = 46


class Theme(NamedTuple):
    """The colours of a page."""

    name: str
    text: str
    dim: str
    ours: str
    other: str
    limit: str


# The text has a contrast of at least 4.5 on the page, the bars of at least 3 (WCAG 2.2).
THEMES = (
    Theme("light", text="#1f2328", dim="#59636e", ours="#0b6e99", other="#848d97", limit="#bf5b04"),
    Theme("dark", text="#f0f6fc", dim="#9198a1", ours="#5cc8f0", other="#6e7681", limit="#e8a45c"),
)


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar of a panel."""

    label: str
    value: float
    kind: str = "other"


@dataclass(frozen=True, kw_only=True)
class Panel:
    """The results of one measurement. Its bars have a scale of their own."""

    title: str
    unit: str
    bars: Sequence[Bar]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Panels side by side, and below one another."""

    name: str
    title: str
    panels: Sequence[Panel]
    columns: int
    label_width: int


def panel_of(group: dict[str, Any], work: str, title: str, unit: str, columns: dict[str, str]) -> Panel:
    """Return the panel of a row of figures. `columns` has the column of each bar, by the label of the bar."""
    values = next(row["values"] for row in group["rows"] if row["work"] == work)
    bars = []
    for label, column in columns.items():
        value = values[group["columns"].index(column)]
        if value is not None:
            kind = "limit" if column == "bare C server" else "ours" if "wshub" in label else "other"
            bars.append(Bar(label=label, value=value, kind=kind))
    return Panel(title=title, unit=unit, bars=bars)


def charts(figures: dict[str, Any]) -> list[Chart]:
    """Return every chart of the documentation."""
    servers = {
        "wshub": "wshub, uvloop",
        "picows": "picows, uvloop",
        "websockets": "websockets, uvloop",
        "bare C server": "bare C server",
    }
    compressing = {name: name for name in ("wshub", "socketify", "aiohttp", "websockets")}
    applications = {
        "wshub, hub route": "hub route",
        "wshub, App": "App coroutine",
        "wshub, Starlette": "Starlette on wshub",
        "websockets": "uvicorn: websockets",
        "websockets-sansio": "websockets-sansio",
        "wsproto": "wsproto",
    }

    def panels(group: str, columns: dict[str, str], *rows: tuple[str, str, str]) -> list[Panel]:
        return [panel_of(figures[group], work, title, unit, columns) for work, title, unit in rows]

    return [
        Chart(
            name="figures",
            title="CPU time of the server for each message, delivery and handshake, and memory of an idle connection",
            panels=panels(
                "servers",
                servers,
                ("fan-out to 1,000, 64 B, 32 in flight", "Broadcast to 1,000, 32 in flight", "µs per delivery"),
                ("fan-out to 1,000, 64 B, one at a time", "Broadcast to 1,000, one at a time", "µs per delivery"),
                ("echo, 64 B, 64 connections, 16 in flight", "Echo, 16 in flight", "µs per message"),
                ("echo, 64 B, 100 connections", "Echo, one at a time", "µs per message"),
                ("handshakes", "Handshake", "µs"),
                ("idle connection, 10,000 of them", "Idle connection", "KB"),
            ),
            columns=2,
            label_width=94,
        ),
        Chart(
            name="compression",
            title="With compression: CPU time of the server, and memory of a connection",
            panels=panels(
                "compression",
                compressing,
                ("fan-out of 1 KiB of JSON to 1,000: µs/delivery", "Broadcast to 1,000, 1 KiB", "µs per delivery"),
                ("echo of 1 KiB of JSON, 100 connections: µs/message", "Echo, 1 KiB", "µs per message"),
                ("resident memory of a connection, each as it comes: KB", "Connection", "KB"),
            ),
            columns=3,
            label_width=92,
        ),
        Chart(
            name="applications",
            title="Applications on uvicorn: CPU time of the server",
            panels=panels(
                "applications",
                applications,
                ("handshakes", "Handshake", "µs"),
                ("echo, 64 B, 100 connections", "Echo, one at a time", "µs per message"),
                ("echo, 64 B, 64 connections, 16 in flight", "Echo, 16 in flight", "µs per message"),
            ),
            columns=2,
            label_width=150,
        ),
    ]


def draw(chart: Chart, theme: Theme, width: int = 760) -> str:
    """Return a chart as SVG."""
    panel_width = (width - 2 * MARGIN - (chart.columns - 1) * PANEL_GAP) / chart.columns
    longest = max(len(panel.bars) for panel in chart.panels)
    panel_height = TITLE_HEIGHT + longest * (BAR_HEIGHT + BAR_GAP) + PANEL_GAP_BELOW
    rows = -(-len(chart.panels) // chart.columns)
    height = round(2 * MARGIN + rows * panel_height - PANEL_GAP_BELOW)
    parts = []
    for number, panel in enumerate(chart.panels):
        row, column = divmod(number, chart.columns)
        x, y = MARGIN + column * (panel_width + PANEL_GAP), MARGIN + row * panel_height
        parts.append(f'<g transform="translate({x:.0f} {y:.0f})">')
        parts += draw_panel(panel, theme, panel_width, chart.label_width)
        parts.append("</g>")
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'role="img" font-family="{FONT}" font-size="13">',
            f"<title>{escape(chart.title)}</title>",
            f"<desc>{escape(description(chart))}</desc>",
            *parts,
            "</svg>\n",
        ]
    )


def draw_panel(panel: Panel, theme: Theme, width: float, label_width: int) -> list[str]:
    """Return the elements of a panel, whose corner is at 0, 0."""
    colours = {"ours": theme.ours, "other": theme.other, "limit": theme.limit}
    largest = max(bar.value for bar in panel.bars)
    parts = [
        f'<text y="13" fill="{theme.text}" font-size="14" font-weight="600">{escape(panel.title)}</text>',
        f'<text y="31" fill="{theme.dim}">{escape(panel.unit)}</text>',
    ]
    for number, bar in enumerate(panel.bars):
        y = TITLE_HEIGHT + number * (BAR_HEIGHT + BAR_GAP)
        length = max((width - label_width - VALUE_WIDTH) * bar.value / largest, 1.5)
        weight = ' font-weight="600"' if bar.kind == "ours" else ""
        end = label_width + length
        parts += [
            f'<text x="0" y="{y + 12}" fill="{theme.text}"{weight}>{escape(bar.label)}</text>',
            f'<rect x="{label_width}" y="{y}" width="{length:.1f}" height="{BAR_HEIGHT}" rx="2" '
            f'fill="{colours[bar.kind]}"/>',
            f'<text x="{end + 6:.1f}" y="{y + 12}" fill="{theme.text}"{weight}>{bar.value:g}</text>',
        ]
    return parts


def description(chart: Chart) -> str:
    """Return the figures of a chart in words, for those who do not see it."""
    return " ".join(
        f"{panel.title}, {panel.unit}: " + ", ".join(f"{bar.label} {bar.value:g}" for bar in panel.bars) + "."
        for panel in chart.panels
    )


def pictures() -> Iterator[tuple[Path, str]]:
    """Yield the path and the text of every chart and diagram."""
    figures = json.loads((BENCHMARKS / "figures.json").read_text())
    for theme in THEMES:
        for chart in charts(figures):
            yield IMAGES / f"{chart.name}-{theme.name}.svg", draw(chart, theme)
        for template in sorted(IMAGES.glob("*.template.svg")):
            name = template.name.removesuffix(".template.svg")
            yield (
                IMAGES / f"{name}-{theme.name}.svg",
                Template(template.read_text()).substitute(theme._asdict(), font=FONT),
            )


def main(arguments: list[str]) -> int:
    """Write the pictures, or list those that differ."""
    different = [(path, drawn) for path, drawn in pictures() if not path.exists() or path.read_text() != drawn]
    for path, drawn in different:
        print(path)
        if arguments != ["--check"]:
            path.write_text(drawn)
    return 1 if different and arguments == ["--check"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

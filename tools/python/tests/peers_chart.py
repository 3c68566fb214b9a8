"""The chart of peers.py: three columns of bars, as an SVG."""

from __future__ import annotations

from html import escape

#: What each column shows: its heading, the figure's key, and how a figure is written.
COLUMNS = (
    ("each worker's own, MiB", "own_mib", lambda value: f"{value:.1f}" if value < 10 else f"{value:.0f}"),
    ("all processes, MiB", "all_mib", lambda value: f"{value:.0f}"),
    ("random reads, M a second", "at_random", lambda value: f"{value / 1e6:.2f}"),
)
#: Widths and heights in pixels.
NAMES, COLUMN, BAR, ROW, HEAD = 220, 225, 150, 26, 34

STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328; }
.head { font-weight: 600; }
.bar { fill: #8c959f; }
.ours { fill: #1a7f37; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .bar { fill: #6e7681; }
  .ours { fill: #3fb950; }
}
"""


def svg(rows: list[tuple[str, dict[str, float]]]) -> str:
    """Rows are a way's name, as the table has it, and its figures."""
    width, height = NAMES + len(COLUMNS) * COLUMN, HEAD + len(rows) * ROW + 8
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">',
        "<title>Three million str, read by two workers</title>",
        f"<style>{STYLE}</style>",
    ]
    for at, (heading, _, _) in enumerate(COLUMNS):
        lines.append(f'<text class="head" x="{NAMES + at * COLUMN}" y="18">{escape(heading)}</text>')
    for line, (name, figures) in enumerate(rows):
        top = HEAD + line * ROW
        shown = escape(name.replace("`", ""))
        kind = "bar ours" if "cowbell" in name else "bar"
        lines.append(f'<text x="{NAMES - 10}" y="{top + 14}" text-anchor="end">{shown}</text>')
        for at, (_, key, written) in enumerate(COLUMNS):
            left = NAMES + at * COLUMN
            length = max(1.0, BAR * figures[key] / max(row[key] for _, row in rows))
            lines.append(f'<rect class="{kind}" x="{left}" y="{top}" width="{length:.1f}" height="18"/>')
            lines.append(f'<text x="{left + length + 6:.1f}" y="{top + 14}">{written(figures[key])}</text>')
    return "\n".join([*lines, "</svg>", ""])

"""The life of a task as a drawing, from the table that the code goes by; for readers without Mermaid."""

from __future__ import annotations

from collections.abc import Mapping

from tasks.model import TRANSITIONS, Status

_PLACES: Mapping[Status, tuple[int, int]] = {
    Status.QUEUED: (0, 1),
    Status.PROCESSING: (1, 1),
    Status.COMPLETED: (2, 0),
    Status.FAILED: (2, 1),
    Status.CANCELLED: (2, 2),
}
"""Column and row; a status that is not here cannot be drawn."""

_LEFT, _TOP, _COLUMN, _ROW, _WIDTH, _HEIGHT = 100, 40, 280, 100, 150, 54
_HEAD = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 860 390" role="img" aria-labelledby="title" \
font-family="system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif" text-anchor="middle">
  <title id="title">The life of a task</title>
  <style>
    .paper { fill: #ffffff; }
    .status { fill: #e6f0ff; stroke: #3b6fb6; stroke-width: 1.5; }
    .end { fill: #f4f6fa; stroke: #8a94a6; stroke-width: 1.5; }
    .name { fill: #17202e; font-size: 16px; font-weight: 600; }
    .event { fill: #465166; font-size: 13px; paint-order: stroke; stroke: #ffffff; stroke-width: 7; }
    .arrow { fill: none; stroke: #465166; stroke-width: 1.8; }
    .head { fill: #465166; }
    @media (prefers-color-scheme: dark) {
      .paper { fill: #10151d; }
      .status { fill: #16294a; stroke: #6fa0e6; }
      .end { fill: #1b2330; stroke: #7d899d; }
      .name { fill: #eef2f8; }
      .event { fill: #b9c3d3; stroke: #10151d; }
      .arrow { stroke: #b9c3d3; }
      .head { fill: #b9c3d3; }
    }
  </style>
  <defs>
    <marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" orient="auto">\
<path class="head" d="M0 0 10 5 0 10z"/></marker>
  </defs>
  <rect class="paper" width="860" height="390" rx="14"/>
"""


def life_cycle_svg() -> str:
    """Return TRANSITIONS as an SVG that reads in light and in dark."""
    x, y = _corner(Status.QUEUED)
    middle = y + _HEIGHT / 2
    arrows = [f'  <circle class="head" cx="24" cy="{middle:g}" r="7"/>\n' + _arrow(f"M32 {middle:g}H{x - 2}")]
    arrows.append(_event((x + 31) / 2 - 6, middle - 14, "submit"))
    arrows += [_transition(before, after, str(event)) for (before, event), after in TRANSITIONS.items()]
    return _HEAD + "".join(arrows) + "".join(_status(status) for status in Status) + "</svg>\n"


def _corner(status: Status) -> tuple[int, int]:
    column, row = _PLACES[status]
    return _LEFT + column * _COLUMN, _TOP + row * _ROW


def _status(status: Status) -> str:
    x, y = _corner(status)
    box = f'<rect class="{"end" if status.ended else "status"}" x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}"'
    return f'  {box} rx="10"/>\n  <text class="name" x="{x + _WIDTH / 2:g}" y="{y + 33}">{status}</text>\n'


def _transition(before: Status, after: Status, event: str) -> str:
    """To the next column straight, back in an arc above, past a column in an arc below."""
    (x1, y1), (x2, y2), half = _corner(before), _corner(after), _WIDTH / 2
    columns = _PLACES[after][0] - _PLACES[before][0]
    if columns == 1:
        start, end = (x1 + _WIDTH, y1 + _HEIGHT / 2), (x2 - 2, y2 + _HEIGHT / 2)
        line = _arrow(f"M{start[0]:g} {start[1]:g}L{end[0]:g} {end[1]:g}")
        above = 8 if start[1] == end[1] else -4  # on a slope it would stand beside the line, so it covers it
        return line + _event((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 - above, event)
    side, bend = (y1, -80) if columns < 0 else (y1 + _HEIGHT, 200)
    goal = y2 - 2 if columns < 0 else y2 + _HEIGHT + 2
    line = _arrow(f"M{x1 + half:g} {side}C{x1 + half:g} {side + bend} {x2 + half:g} {side + bend} {x2 + half:g} {goal}")
    return line + _event((x1 + x2) / 2 + half, (side + goal) / 8 + (side + bend) * 0.75 - 8, event)


def _arrow(path: str) -> str:
    return f'  <path class="arrow" marker-end="url(#tip)" d="{path}"/>\n'


def _event(x: float, y: float, text: str) -> str:
    return f'  <text class="event" x="{x:g}" y="{y:g}">{text}</text>\n'

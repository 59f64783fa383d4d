"""Draws the recording of benchmarks.plots.kill_recording as an animated SVG that runs in real time and repeats.

    python -m benchmarks.plots.kill_plot

Reads benchmarks/results/kill-worker.json, writes docs/images/kill-worker.svg. Where animation is not supported the
picture shows the end of the recording.
"""

import json
import sys
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from benchmarks.model_configs import ROOT

RECORDING = ROOT / "benchmarks" / "results" / "kill-worker.json"
OUT = ROOT / "docs" / "images" / "kill-worker.svg"

FONT, ADVANCE, LINE = 12.5, 7.5, 19
"""Font size, width of a character and height of a line."""
WIDTH, MARGIN = 920, 24
PANE_WIDTH, PANE_ROWS = (WIDTH - 3 * MARGIN) // 2, 12
COLUMNS = int((PANE_WIDTH - 24) / ADVANCE)
PANE_TOP, PANE_HEIGHT = 54, 46 + PANE_ROWS * LINE
TIMELINE_TOP = PANE_TOP + PANE_HEIGHT + 32
LOG_TOP = TIMELINE_TOP + 74
HEIGHT = LOG_TOP + 5 * LINE
HOLD_S = 3.0
"""How long the end is shown before the animation starts again."""

BACKGROUND, PANE, FRAME = "#0d1117", "#161b22", "#30363d"
TEXT, DIM, RED, GREEN = "#e6edf3", "#8b949e", "#ff7b72", "#7ee787"
STREAMS = ("#79c0ff", "#d2a8ff")


class Drawing:
    """The parts of the picture, and the time at which each appears."""

    def __init__(self, end_s: float) -> None:
        self.end_s = end_s
        self._cycle_s = end_s + HOLD_S
        self._parts: list[str] = []

    def box(self, x: float, y: float, width: float, height: float, fill: str, stroke: str = "none") -> None:
        """Add a rectangle that is always there."""
        place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
        self._parts.append(f'<rect {place} rx="6" fill="{fill}" stroke="{stroke}"/>')

    def text(self, x: float, y: float, text: str, fill: str, s: float | None = None) -> None:
        """Add text of a fixed width per character; it appears at `s`, or is always there."""
        shown = f'fill="{fill}" textLength="{ADVANCE * len(text):g}" xml:space="preserve"'
        self._parts.append(f'<text x="{x:g}" y="{y:g}" {shown}>{escape(text)}{self._appear(s)}</text>')

    def tick(self, x: float, y: float, height: float, fill: str, s: float | None = None, width: float = 1.4) -> None:
        """Add a vertical line; it appears at `s`, or is always there."""
        place = f'x="{x - width / 2:.1f}" y="{y:g}" width="{width:g}" height="{height:g}"'
        self._parts.append(f'<rect {place} fill="{fill}">{self._appear(s)}</rect>')

    def cursor(self, x: float, to_x: float, y: float, height: float) -> None:
        """Add a line that moves with the time."""
        times = f'keyTimes="0;{self.end_s / self._cycle_s:.4f};1" dur="{self._cycle_s:g}s"'
        move = f'<animate attributeName="x" values="{x:g};{to_x:g};{to_x:g}" {times} repeatCount="indefinite"/>'
        self._parts.append(f'<rect x="{to_x:g}" y="{y:g}" width="1" height="{height:g}" fill="{DIM}">{move}</rect>')

    def _appear(self, s: float | None) -> str:
        if s is None:
            return ""
        timing = f'keyTimes="0;{s / self._cycle_s:.4f}" dur="{self._cycle_s:g}s" repeatCount="indefinite"'
        return f'<animate attributeName="opacity" values="0;1" calcMode="discrete" {timing}/>'

    def svg(self, title: str) -> str:
        """Return the picture."""
        font = f'font-family="ui-monospace,SFMono-Regular,Menlo,Consolas,DejaVu Sans Mono,monospace" font-size="{FONT}"'
        size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" {font}><title>{escape(title)}</title>'
        return "\n".join([head, *self._parts, "</svg>"]) + "\n"


def lines(pieces: list[tuple[float, str]]) -> Iterator[tuple[int, int, float, str]]:
    """Wrap the text of a stream; yield (line, column, time, text) of each piece, or of each part of one.

    Raises ValueError for a text that does not fit its pane."""
    text = "".join(piece for _, piece in pieces)
    times = [s for s, piece in pieces for _ in piece]
    number = position = 0
    for paragraph in text.split("\n"):
        for wrapped in textwrap.wrap(paragraph, COLUMNS) or [""]:
            position = text.index(wrapped, position)
            column = 0
            while column < len(wrapped):
                s, start = times[position + column], column
                while column < len(wrapped) and times[position + column] == s:
                    column += 1
                if number >= PANE_ROWS:
                    raise ValueError(f"the text has more than {PANE_ROWS} lines")
                yield number, start, s, wrapped[start:column]
            position += len(wrapped)
            number += 1


def draw_streams(drawing: Drawing, recording: dict[str, Any]) -> None:
    """Draw a pane for each stream, with a mark where the worker was killed."""
    killed_s = recording["killed"]["s"]
    for index, (stream, colour) in enumerate(zip(recording["streams"], STREAMS, strict=True)):
        left = MARGIN + index * (PANE_WIDTH + MARGIN)
        drawing.box(left, PANE_TOP, PANE_WIDTH, PANE_HEIGHT, PANE, FRAME)
        drawing.text(left + 12, PANE_TOP + 24, f"> {stream['prompt']}", colour)
        is_marked = False
        for line, column, s, text in lines(stream["pieces"]):
            x, y = left + 12 + column * ADVANCE, PANE_TOP + 50 + line * LINE
            drawing.text(x, y, text, TEXT, s)
            if s > killed_s and not is_marked:
                drawing.tick(x + ADVANCE * (len(text) - len(text.lstrip())) - 1, y - FONT, LINE - 2, RED, killed_s, 2)
                is_marked = True


def draw_timeline(drawing: Drawing, recording: dict[str, Any]) -> None:
    """Draw each token as a tick, the kill, and the pause that follows it."""
    left, right = MARGIN + 78, WIDTH - MARGIN
    killed_s = recording["killed"]["s"]

    def x(s: float) -> float:
        return left + (right - left) * s / drawing.end_s

    for index, (stream, colour) in enumerate(zip(recording["streams"], STREAMS, strict=True)):
        top = TIMELINE_TOP + index * 18
        drawing.text(MARGIN, top + 11, f"stream {index + 1}", colour)
        for s, _ in stream["pieces"]:
            drawing.tick(x(s), top, 13, colour, s)
    drawing.tick(x(killed_s), TIMELINE_TOP - 8, 48, RED, killed_s, 2)
    pause, resumed_s = (
        pause_s(recording),
        min(s for one in recording["streams"] for s, _ in one["pieces"] if s > killed_s),
    )
    drawing.text(x(killed_s) + 8, TIMELINE_TOP + 11, "kill -9", RED, killed_s)
    drawing.text(x(killed_s) + 8, TIMELINE_TOP + 29, f"{pause:.1f} s pause", RED, resumed_s)
    drawing.cursor(x(0), x(drawing.end_s), TIMELINE_TOP - 8, 48)


def pause_s(recording: dict[str, Any]) -> float:
    """Return the longest gap between two pieces of a stream."""
    times: list[list[float]] = [[s for s, _ in stream["pieces"]] for stream in recording["streams"]]
    return max(after - before for one in times for before, after in pairwise(one))


def draw_log(drawing: Drawing, recording: dict[str, Any]) -> None:
    """Draw the kill, what the server wrote about it, and the end."""
    killed = recording["killed"]
    entries = [(killed["s"], f"$ kill -9 {killed['pid']}", RED)]
    entries += [(s, line, DIM) for s, line in recording["log"] if "warming" not in line]
    ends = "both streams complete, with the text of a run without the kill"
    entries.append((drawing.end_s, ends, GREEN))
    for number, (s, line, colour) in enumerate(entries):
        drawing.text(MARGIN, LOG_TOP + number * LINE, f"{s:5.1f} s  {line}", colour, s)


def draw(recording: dict[str, Any]) -> Path:
    """Write the picture and return its file."""
    streams = recording["streams"]
    drawing = Drawing(max(stream["pieces"][-1][0] for stream in streams))
    drawing.box(0, 0, WIDTH, HEIGHT, BACKGROUND, FRAME)
    drawing.text(MARGIN, 34, "$ quartet serve smollm2", TEXT)
    note = f"{recording['hardware']}, {recording['date']}, real time"
    drawing.text(WIDTH - MARGIN - ADVANCE * len(note), 34, note, DIM)
    draw_streams(drawing, recording)
    draw_timeline(drawing, recording)
    draw_log(drawing, recording)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    title = f"Two streams go on after kill -9 of the worker, {pause_s(recording):.1f} s later"
    OUT.write_text(drawing.svg(title), encoding="utf-8")
    return OUT


def main() -> int:
    """Draw the recording that is there."""
    print(draw(json.loads(RECORDING.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Where `quartet chat` shows an answer: Markdown that grows on a terminal, the bare text anywhere else.

A model's output must not control the terminal, so control characters are left out everywhere.
"""

import asyncio
import contextlib
import itertools
import re
import termios
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, TextIO

from quartet.cli.chat_conversation import Display

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

DRAW_INTERVAL_S = 0.08
# All of C0 but tab and line end, DEL, and C1.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def without_controls(text: str) -> str:
    """Return the text without control characters other than tabs and line ends."""
    return _CONTROL.sub("", text)


@contextlib.asynccontextmanager
async def display_for(out: TextIO) -> AsyncIterator[Display]:
    """Yield what shows one answer on `out`, and end it on a line of its own."""
    if out.isatty():
        from rich.console import Console

        console = Console(file=out)
        if not console.is_dumb_terminal:
            with without_echo(out.fileno()), MarkdownDisplay(console) as display:
                drawing = asyncio.ensure_future(_draw(display))
                try:
                    yield display
                finally:
                    drawing.cancel()
            return
    plain = PlainDisplay(out)
    try:
        yield plain
    finally:
        plain.end()


async def _draw(display: "MarkdownDisplay") -> None:
    # A thread of rich would draw between two parts of what is printed here.
    while True:
        display.draw()
        await asyncio.sleep(DRAW_INTERVAL_S)


@contextlib.contextmanager
def without_echo(terminal: int) -> Iterator[None]:
    """Keep keys that are pressed meanwhile out of what is shown; the next question begins with them."""
    before = termios.tcgetattr(terminal)
    silent = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    termios.tcsetattr(terminal, termios.TCSANOW, silent)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSANOW, before)


class PlainDisplay:
    """The text of the answer as it comes; thinking is left out."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._has_text = False

    def thinking(self, piece: str) -> None:
        """Leave it out: what reads the output wants the answer."""

    def text(self, piece: str) -> None:
        """Write it at once."""
        self._has_text = True
        self._out.write(without_controls(piece))
        self._out.flush()

    def end(self) -> None:
        """End the line, if anything was written."""
        if self._has_text:
            self._out.write("\n")
            self._out.flush()


class MarkdownDisplay:
    """Markdown on a terminal; use it as a context.

    A block that is complete (a paragraph, a list, a fence) is printed for good. Only the last one is drawn again as it
    grows, and of it no more than the screen has lines, so that an answer of any length scrolls as usual.
    """

    def __init__(self, console: "Console") -> None:
        from rich.live import Live
        from rich.spinner import Spinner

        self._console = console
        self._spinner = Spinner("dots", style="dim")
        self._tail = ""
        self._is_thinking = False
        self._has_block = False
        self._live = Live(self, console=console, transient=True, auto_refresh=False)

    def __enter__(self) -> "MarkdownDisplay":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        self._print(self._blocks(self._tail))

    def thinking(self, piece: str) -> None:
        """Show it dimmed."""
        self._take(piece, True)

    def text(self, piece: str) -> None:
        """Show it as Markdown."""
        self._take(piece, False)

    def draw(self) -> None:
        """Draw the last block as it is."""
        self._live.refresh()

    def _take(self, piece: str, is_thinking: bool) -> None:
        if is_thinking != self._is_thinking:
            self._print(self._blocks(self._tail))
            self._is_thinking = is_thinking
        self._tail += without_controls(piece)
        if "\n" in piece and not is_thinking:
            self._print(complete_blocks(self._tail))

    def _blocks(self, text: str) -> list[str]:
        return [text] if self._is_thinking else blocks_of(text)

    def _print(self, blocks: list[str]) -> None:
        for block in blocks:
            self._tail = self._tail[len(block) :]
            if block.strip():
                self._console.print(_Block(self._drawn(block), self._has_block), end="")
                self._has_block = True

    def __rich__(self) -> "RenderableType":
        """Return the block that grows, or a sign of waiting."""
        if self._tail.strip():
            return _Block(self._drawn(self._tail), self._has_block, self._console.height - 1)
        return "" if self._has_block else self._spinner

    def _drawn(self, text: str) -> "RenderableType":
        if self._is_thinking:
            from rich.text import Text

            return Text(text.strip(), style="dim italic")
        from rich.markdown import Markdown

        # Without hyperlinks the address is shown, not only what the model calls it.
        drawn = Markdown("", hyperlinks=False)
        drawn.parsed = _parser().parse(text)
        return drawn


class _Block:
    """A drawn block without blank lines at its ends, with one before it if it is not the first.

    Of one that has more than `most_lines` the last ones are shown.
    """

    def __init__(self, content: "RenderableType", follows: bool, most_lines: int | None = None) -> None:
        self._content = content
        self._follows = follows
        self._most_lines = most_lines

    def __rich_console__(self, console: "Console", options: Any) -> Iterator[Any]:
        from rich.segment import Segment

        lines = console.render_lines(self._content, options.update(height=None), pad=False)
        while lines and _is_blank(lines[-1]):
            lines.pop()
        while lines and _is_blank(lines[0]):
            lines.pop(0)
        if self._follows:
            lines.insert(0, [])
        for line in lines[-max(1, self._most_lines or len(lines)) :]:
            yield from line
            yield Segment.line()


def _is_blank(line: list[Any]) -> bool:
    """Return whether nothing of a line can be seen; code has a background."""
    return all(not text.strip() and not (style and style.bgcolor) for text, style, _ in line)


def _parser() -> Any:
    from markdown_it import MarkdownIt

    # A model that writes of HTML means the tags to be read.
    return MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])


def blocks_of(text: str) -> list[str]:
    """Return a Markdown text in its blocks (a paragraph, a whole list, a fence); joined they are the text."""
    tokens = _parser().parse(text)
    # Markdown ends a line at "\n" alone.
    lines = [line + "\n" for line in text.split("\n")]
    lines[-1] = lines[-1][:-1]
    starts = [token.map[0] for token in tokens if token.level == 0 and token.map]
    edges = [0, *starts[1:], len(lines)]
    return ["".join(lines[start:end]) for start, end in itertools.pairwise(edges)]


def complete_blocks(text: str) -> list[str]:
    """Return the blocks at the start of a Markdown text that no further text changes.

    Only whole lines are looked at, and the last block of them may go on.
    """
    return blocks_of(text[: text.rfind("\n") + 1])[:-1]

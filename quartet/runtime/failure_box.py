"""Why a command or a launch ends with an error: a box on a terminal, one line elsewhere."""

import io
import sys

from quartet.runtime.output import STDERR, discard, terminal_columns

MIN_COLUMNS, MAX_COLUMNS = 40, 120


def show_failure(cause: str, note: str = "", prefix: str = "quartet: ") -> None:
    """Show one printable line, and another that belongs to it, on standard error; `prefix` precedes the line."""
    columns = terminal_columns(STDERR)
    if columns < MIN_COLUMNS:
        complain(prefix + cause + (f"; {note}" if note else ""))
    else:
        complain(_box(cause, note, min(columns, MAX_COLUMNS)))


def complain(text: str) -> None:
    """Print on standard error, if it can be written: the exit code says as much."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        discard(STDERR)


def _box(cause: str, note: str, columns: int) -> str:
    # Loaded by what has failed alone.
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    text = Text(cause)
    if note:
        text.append(f"\n{note}", style="dim")
    drawn = io.StringIO()
    console = Console(file=drawn, force_terminal=True, width=columns, highlight=False)
    console.print(Panel(text, title="quartet cannot go on", title_align="left", border_style="red"))
    return drawn.getvalue().rstrip("\n")

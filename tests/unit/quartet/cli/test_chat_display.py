"""What `quartet chat` shows: Markdown in whole blocks on a terminal, bare text elsewhere, and no control characters."""

import io
import re
from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from rich.console import Console

from quartet.cli.chat_display import MarkdownDisplay, PlainDisplay, blocks_of, complete_blocks
from quartet.cli.chat_terminal import CommandCompleter, open_history

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
ANSWER = "# Title\n\nA **bold** word\nand more.\n\n1. one\n\n2. two\n\n```python\nx = 1\n\ny = 2\n```\n\nThe end."


def console_for(out: io.StringIO, height: int = 24) -> Console:
    return Console(file=out, force_terminal=True, width=60, height=height, color_system="truecolor")


def on_terminal(*pieces: str, height: int = 24) -> str:
    out = io.StringIO()
    with MarkdownDisplay(console_for(out, height)) as display:
        for piece in pieces:
            display.text(piece)
            display.draw()
    return out.getvalue()


def last_screen(output: str) -> list[str]:
    """Return the lines that were printed for good: the growing block is erased each time it is drawn again."""
    lines, row = [""], 0
    for part in re.split(r"(\n|\r|\x1b\[[0-9;?]*[a-zA-Z])", output):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part == "\x1b[1A":
            row -= 1
        elif part and part != "\r" and not ESCAPES.fullmatch(part):
            lines[row] += part
    return [line.rstrip() for line in lines]


def test_the_end_is_the_same_whatever_the_pieces() -> None:
    whole = last_screen(on_terminal(ANSWER))
    assert last_screen(on_terminal(*ANSWER)) == whole
    text = "\n".join(whole)
    assert "Title\n\nA bold word and more.\n\n 1 one\n 2 two\n\n" in text and text.rstrip().endswith("\n\nThe end.")
    assert text.count("Title") == text.count("y = 2") == 1


@pytest.mark.parametrize("height", [4, 24])
def test_a_block_longer_than_the_screen_is_shown_once(height: int) -> None:
    items = [f"- item {number}\n" for number in range(30)]
    screen = "\n".join(last_screen(on_terminal(*items, height=height)))
    assert [screen.count(f"item {number}\n") for number in range(29)] == [1] * 29


def test_thinking_is_dimmed_and_ends_before_the_answer() -> None:
    out = io.StringIO()
    with MarkdownDisplay(console_for(out)) as display:
        display.thinking("Is it *so*?")
        display.draw()
        display.text("Yes.")
    assert "\x1b[2;3mIs it *so*?\x1b[0m" in out.getvalue()
    screen = last_screen(out.getvalue())
    assert screen.index("Is it *so*?") + 2 == screen.index("Yes.")


def test_tags_are_text() -> None:
    screen = "\n".join(last_screen(on_terminal("Use the <br> tag.\n\n", "<div>\nhidden?\n</div>")))
    assert "Use the <br> tag." in screen and "<div> hidden? </div>" in screen


def test_control_characters_reach_no_output() -> None:
    hostile = "a\x1b[2Jb\tc\nd\x9b\x07 [link](http://x/\x1b]0;t)"
    out = io.StringIO()
    plain = PlainDisplay(out)
    plain.text(hostile)
    plain.end()
    assert out.getvalue() == "a[2Jb\tc\nd [link](http://x/]0;t)\n"
    shown = on_terminal(*hostile)
    assert "\x1b[2J" not in shown and "\x9b" not in shown and "\x07" not in shown and "\x1b]" not in shown


def test_plain_text_has_no_thinking_and_no_line_without_an_answer() -> None:
    out = io.StringIO()
    plain = PlainDisplay(out)
    plain.thinking("Hmm.")
    plain.end()
    assert out.getvalue() == ""


def test_only_blocks_that_nothing_changes_are_complete() -> None:
    """Every beginning of a text, as it may arrive, agrees with the whole on the blocks that it calls complete."""
    whole = blocks_of(ANSWER)
    assert "".join(whole) == ANSWER and len(whole) == 5
    for length in range(len(ANSWER) + 1):
        found = complete_blocks(ANSWER[:length])
        assert found == whole[: len(found)]
    assert len(complete_blocks(ANSWER + "\n")) == 4
    assert complete_blocks("1. one\n\n2") == complete_blocks("| a |\n|---") == complete_blocks("") == []
    assert blocks_of("a\u2028b\n\nc") == ["a\u2028b\n\n", "c"]


def test_commands_are_completed_at_the_start_alone() -> None:
    def completed(text: str) -> list[str]:
        return [one.text for one in CommandCompleter().get_completions(Document(text), CompleteEvent())]

    assert completed("/s") == ["/system", "/save"]
    assert completed("a /s") == completed("") == completed("/save x") == []


def test_the_history_is_for_its_owner_and_no_place_for_it_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    open_history().append_string("a question")
    path = tmp_path / "quartet" / "chat_history"
    assert "a question" in path.read_text() and path.stat().st_mode & 0o777 == 0o600
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    open_history().append_string("kept in memory")

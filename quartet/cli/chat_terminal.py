"""The conversation of `quartet chat` at a terminal: input with history and commands, answers, Ctrl-C."""

import json
import os
import sys
from collections.abc import Awaitable, Callable, Iterable

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import ANSI, FormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import create_output
from rich.console import Console
from rich.text import Text

from quartet.cli.chat_conversation import Answer, Conversation, summary
from quartet.cli.chat_display import display_for
from quartet.runtime.home import expand_home
from quartet.wire.errors import ConfigError, EngineError

COMMANDS = {
    "/help": "show this",
    "/reset": "forget the conversation",
    "/system": "TEXT: instructions for all answers; without TEXT none",
    "/save": "FILE: write the conversation as the JSON body of a request",
    "/exit": "leave, as do Ctrl-D and a second Ctrl-C",
}
KEYS = "Enter sends; Alt-Enter, or a backslash before Enter, starts another line; Ctrl-C stops an answer."
LEAVING_HINT = "Ctrl-C again, Ctrl-D or /exit leaves."

Read = Callable[[], Awaitable[str]]
Guard = Callable[[Awaitable[Answer], Callable[[], None]], Awaitable[Answer]]


class Terminal:
    """One conversation with the person at the terminal.

    `guard(asking, stop)` awaits an answer and calls `stop` at Ctrl-C. `read` gives the next input and raises EOFError
    or KeyboardInterrupt for Ctrl-D and Ctrl-C.
    """

    def __init__(self, conversation: Conversation, guard: Guard, read: Read | None = None) -> None:
        self._conversation = conversation
        self._guard = guard
        self._read = read or prompt()
        self._notes = Console(stderr=True, highlight=False)
        self._is_leaving = False

    async def talk(self) -> int:
        """Answer until the end of input; returns the exit code."""
        self._note(f"{self._conversation.model} at {self._conversation.engine.address}. /help lists the commands.")
        while True:
            try:
                line = await self._read()
            except EOFError:
                return 0
            except KeyboardInterrupt:
                if self._is_leaving:
                    return 0
                self._is_leaving = True
                self._note(LEAVING_HINT)
                continue
            self._is_leaving = False
            if line.strip() in ("/exit", "/quit"):
                return 0
            if line.startswith("/"):
                self._obey(line)
            elif line.strip():
                await self._answer(line.strip())

    async def _answer(self, question: str) -> None:
        try:
            async with display_for(sys.stdout) as display:
                answer = await self._guard(self._conversation.ask(question, display), self._conversation.stop)
        except EngineError as error:
            self._note(str(error), "yellow")
            return
        self._is_leaving = answer.is_interrupted
        self._note(summary(answer) + "\n")

    def _obey(self, line: str) -> None:
        command, _, rest = line.strip().partition(" ")
        if command == "/help":
            for name, purpose in COMMANDS.items():
                self._note(f"{name:<9} {purpose}")
            self._note(KEYS)
        elif command == "/reset":
            self._conversation.reset()
            self._note("The conversation is forgotten.")
        elif command == "/system":
            self._conversation.system = rest.strip()
            self._note(f"Instructions: {rest.strip() or 'none'}")
        elif command == "/save":
            self._save(rest.strip())
        else:
            self._note(f"{command} is no command: /help lists them. A space before it makes it a question.", "yellow")

    def _save(self, name: str) -> None:
        if not name:
            self._note("/save needs the name of a file.", "yellow")
            return
        body = {"model": self._conversation.model, "messages": self._conversation.messages}
        try:
            # A file that exists is not replaced.
            with expand_home(name).open("x", encoding="utf-8") as file:
                json.dump(body, file, ensure_ascii=False, indent=2)
        except (OSError, ConfigError) as error:
            self._note(f"not saved: {error}", "yellow")
        else:
            self._note(f"{len(body['messages'])} messages are in {name}.")

    def _note(self, text: str, style: str = "dim") -> None:
        self._notes.print(Text(text, style=style))


def prompt() -> Read:
    """Return what reads a question at the terminal, where standard output may be a file."""
    session: PromptSession[str] = PromptSession(
        message=FormattedText([("bold", "> ")]),
        multiline=True,
        prompt_continuation=ANSI("  "),
        history=open_history(),
        completer=CommandCompleter(),
        key_bindings=_bindings(),
        output=create_output(always_prefer_tty=True),
        # The history is looked through by the same keys.
        complete_while_typing=True,
        reserve_space_for_menu=len(COMMANDS) + 1,
    )
    return session.prompt_async


def _bindings() -> KeyBindings:
    bindings = KeyBindings()

    @bindings.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.newline()
        else:
            buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.newline()

    return bindings


class CommandCompleter(Completer):
    """Completes the first word of the input where it begins with a slash."""

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Yield the commands that begin with what is before the cursor."""
        typed = document.text_before_cursor
        if typed.startswith("/"):
            for name, purpose in COMMANDS.items():
                if name.startswith(typed):
                    yield Completion(name, -len(typed), display_meta=purpose)


def open_history() -> History:
    """Return the questions of earlier conversations; without a place for them, those of this one.

    The file is `chat_history` in quartet below XDG_STATE_HOME or ~/.local/state, and only its owner can read it.
    """
    try:
        path = expand_home(os.environ.get("XDG_STATE_HOME") or "~/.local/state") / "quartet" / "chat_history"
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        with path.open("ab"):
            return FileHistory(str(path))
    except (OSError, ConfigError):
        return InMemoryHistory()

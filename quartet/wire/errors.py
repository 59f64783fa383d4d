"""The error tree of Quartet, and what each error means to a client.

QuartetError
├── StartError               start-up refused in one line on stderr
│   ├── ConfigError          a setting is wrong: exit code 2
│   └── ModelError           model missing or damaged: exit code 3
├── EngineError              a command got no answer from a running engine: one line on stderr, exit code 1
├── FrameError               a damaged, foreign or stale frame; counted and dropped, never raised out of a loop
├── InvariantViolation       a bug: the scheduler's state contradicts itself
└── RequestError             one request is refused or failed; carries OpenAI's error fields
      400 invalid_value, context_length_exceeded, ...   a retry cannot help
      404 model_not_found                                a retry cannot help
      408 deadline_exceeded                              a retry may help
      409 stream_in_use                                  a retry helps after `retry_after_s`
      410 stream_expired                                 a retry cannot help
      499 request_aborted                                a retry cannot help
      500 internal_error, out_of_memory, ...             a retry may help
      503 queue_full, draining, engine_restarting        a retry helps after `retry_after_s`
      503 engine_failed                                  a retry helps once the server has been started again
"""

from typing import ClassVar


class QuartetError(Exception):
    """Root of every error that Quartet raises on purpose."""


_LONGEST_LINE = 600


def one_line(message: str) -> str:
    """Return the message as one printable line of bounded length."""
    shown = message if len(message) <= _LONGEST_LINE else message[: _LONGEST_LINE - 3] + "..."
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in shown)


class StartError(QuartetError):
    """Start-up is refused. The message is one printable line, whatever the values that it quotes contain."""

    exit_code: ClassVar[int]
    """Of the command."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class ConfigError(StartError):
    """A setting is wrong. The message names the field, the value given and the bound."""

    exit_code = 2


class ModelError(StartError):
    """The model cannot be found or read. The message states what to do next."""

    exit_code = 3


class EngineError(QuartetError):
    """A running engine gives no answer, or refuses. The message is one line for the user of a command."""


class FrameError(QuartetError):
    """A frame that must not be acted upon. `reason` is a closed set of words used as a metric label."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class InvariantViolation(QuartetError):
    """An invariant of the scheduler does not hold. `name` is its id in the rule book (INV-1 to INV-8)."""

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(f"{name}: {detail}")
        self.name = name


class RequestError(QuartetError):
    """One request is refused or has failed; maps onto OpenAI's error object.

    Args:
        status: HTTP status.
        code: OpenAI-style machine-readable code, e.g. `context_length_exceeded`.
        message: what is wrong and what to do; no paths, no stack, no prompt text.
        param: the request field at fault, if one is.
        retry_after_s: seconds after which a retry is worthwhile, for 503.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s

"""quartet chat: a conversation with a running engine in the terminal, or one answer for a script.

A client of any server with OpenAI's chat completions. What is asked comes from the command line and from a pipe; where
both are given the pipe is the text that the question is about. Without either it is a conversation.
"""

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any, TextIO

from quartet.cli.chat_conversation import Answer, Conversation, first_model, summary
from quartet.cli.chat_display import display_for
from quartet.cli.engine_client import EngineClient, add_engine_arguments
from quartet.wire.errors import ConfigError

INTERRUPTED = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the question, the engine's address, the model and what shapes its answers."""
    parser.description = (
        "Talk to a running engine: a conversation, or one answer to a question or to what a pipe brings. "
        "With both, the pipe brings the text that the question is about."
    )
    parser.add_argument("question", nargs="*", help="ask this, show the answer and end")
    add_engine_arguments(parser)
    parser.add_argument("--model", default="", help="model name (default: the first that is served)")
    parser.add_argument("--system", default="", metavar="TEXT", help="instructions for all answers")
    parser.add_argument("--temperature", type=float, metavar="X", help="default: the model's")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="longest answer (default: what the context has)")
    parser.add_argument("--json", action="store_true", help="print the answer to one question as a JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Answer one question or hold a conversation; returns the exit code. Raises ConfigError or EngineError."""
    is_terminal = sys.stdin.isatty()
    question = full_question(" ".join(arguments.question), None if is_terminal else sys.stdin)
    if not question and not is_terminal:
        raise ConfigError('there is no question: give one (quartet chat "..."), pipe one in, or use a terminal')
    if not question and arguments.json:
        raise ConfigError("--json is for one answer: give a question, or pipe one in")
    return asyncio.run(_run(arguments, question))


def full_question(asked: str, piped: TextIO | None) -> str:
    """Return the question, with the text of a pipe before it. Raises ConfigError if either is no text.

    The text goes first so that the next question about it finds it in the prefix cache.
    """
    try:
        text = piped.read().strip() if piped else ""
        question = "\n\n".join(part for part in (text, asked.strip()) if part)
        # Some locales read other bytes as lone surrogates, which no JSON may have.
        question.encode()
    except UnicodeError:
        raise ConfigError("what was asked or piped in is not UTF-8 text") from None
    return question


async def _run(arguments: argparse.Namespace, question: str) -> int:
    given = {"temperature": arguments.temperature, "max_tokens": arguments.max_tokens}
    options = {name: value for name, value in given.items() if value is not None}
    async with EngineClient(arguments.url, arguments.api_key) as engine:
        model = arguments.model or await first_model(engine)
        conversation = Conversation(engine, model, options, arguments.system)
        if arguments.json:
            return await answer_as_json(conversation, question, sys.stdout)
        if question:
            return await answer_once(conversation, question, sys.stdout, sys.stderr)
        from quartet.cli.chat_terminal import Terminal

        return await Terminal(conversation, stopped_by_ctrl_c).talk()


async def answer_once(conversation: Conversation, question: str, out: TextIO, notes: TextIO) -> int:
    """Show one answer, and on a terminal what it took; returns the exit code. Raises EngineError."""
    async with display_for(out) as display:
        answer = await stopped_by_ctrl_c(conversation.ask(question, display), conversation.stop)
    if notes.isatty():
        print(summary(answer), file=notes)
    return INTERRUPTED if answer.is_interrupted else 0


async def answer_as_json(conversation: Conversation, question: str, out: TextIO) -> int:
    """Print one answer as a JSON object; returns the exit code. Raises EngineError."""
    answer = await stopped_by_ctrl_c(conversation.ask(question), conversation.stop)
    record: dict[str, Any] = {
        "model": conversation.model,
        "answer": answer.text,
        "reasoning": answer.thinking,
        "finish_reason": answer.finish_reason,
        "usage": answer.usage,
        "ttft_s": answer.ttft_s,
        "total_s": answer.total_s,
    }
    print(json.dumps(record, ensure_ascii=False), file=out)
    return INTERRUPTED if answer.is_interrupted else 0


async def stopped_by_ctrl_c(asking: Awaitable[Answer], stop: Callable[[], None]) -> Answer:
    """Return the answer; a Ctrl-C until then calls `stop`."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, stop)
    try:
        return await asking
    finally:
        loop.remove_signal_handler(signal.SIGINT)

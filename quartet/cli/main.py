"""The command line: quartet serve | chat | ps | simulate | advise."""

import argparse
import http.client
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

import msgspec

from quartet.cli.options import OneLineParser, add_options, complain
from quartet.runtime.lifetime import stop_signals_exit
from quartet.runtime.output import STDERR, STDOUT, discard, lossy_output
from quartet.settings import build_config
from quartet.version import __version__
from quartet.wire.config import ServerConfig
from quartet.wire.errors import ConfigError, ModelError

EXIT_CONFIG = 2
EXIT_MODEL = 3
SIMULATOR_COMMANDS = {
    "simulate": "run the scheduler on virtual time",
    "advise": "find the policy for a recorded trace",
}
DEFAULT_URL = "http://{0.host}:{0.port}".format(ServerConfig())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:1] == ["serve"]:
        with lossy_output(STDOUT, STDERR):
            return _run(given)
    try:
        try:
            return _run(given)
        finally:
            sys.stdout.flush()
    except OSError as error:
        # The output was the purpose of the command.
        discard(STDOUT)
        if not isinstance(error, BrokenPipeError):
            complain(f"quartet: {error}")
        return 1


def _run(given: list[str]) -> int:
    parser = OneLineParser(prog="quartet", description="Serve large language models.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"quartet {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=OneLineParser)
    serve = commands.add_parser("serve", help="start the engine and its HTTP server", allow_abbrev=False)
    serve.add_argument("model", nargs="?", metavar="MODEL", help="folder, .gguf file, hub id, or smollm2 (the default)")
    add_options(serve)
    serve.add_argument(
        "--scheduler-set",
        action="append",
        metavar="NAME=VALUE",
        help="set a scheduler field without a flag; repeatable",
    )
    for name, text in (("chat", "talk to a running engine"), ("ps", "show the processes of a running engine")):
        client = commands.add_parser(name, help=text, allow_abbrev=False)
        client.add_argument("--url", default=os.environ.get("QUARTET_URL", DEFAULT_URL), help="of the engine")
        client.add_argument("--api-key", default=os.environ.get("QUARTET_API_KEY", ""), help="key to send")
        if name == "ps":
            client.add_argument("--config", action="store_true", help="show the scheduler's settings in force instead")
        if name == "chat":
            client.add_argument("--model", default="", help="model name; default: the one that is served")
            client.add_argument(
                "--max-tokens", type=int, default=512, metavar="N", help="longest answer (default: 512)"
            )
    _add_simulator(commands, is_wanted=bool(given) and given[0] in SIMULATOR_COMMANDS)
    arguments, unknown = parser.parse_known_args(given)
    if unknown:
        commands.choices[arguments.command].error(f"unrecognized arguments: {unknown[0]}")
    try:
        if arguments.command == "serve":
            return _serve(arguments)
        if arguments.command in SIMULATOR_COMMANDS:
            return _simulator(arguments)
        return _chat(arguments) if arguments.command == "chat" else _ps(arguments)
    except (ConfigError, ModelError) as error:
        complain(f"quartet: {error}")
        return EXIT_CONFIG if isinstance(error, ConfigError) else EXIT_MODEL
    except KeyboardInterrupt:
        return 130


def _add_simulator(commands: Any, is_wanted: bool) -> None:
    """Add the simulator's commands; their options only when one is used, since those import the scheduler."""
    if not is_wanted:
        for name, text in SIMULATOR_COMMANDS.items():
            commands.add_parser(name, help=text)
        return
    from quartet.cli.simulate import add_advise, add_simulate

    add_simulate(commands)
    add_advise(commands)


def _simulator(arguments: argparse.Namespace) -> int:
    from quartet.cli.simulate import run_advise, run_simulate

    return run_simulate(arguments) if arguments.command == "simulate" else run_advise(arguments)


def _serve(arguments: argparse.Namespace) -> int:
    options = vars(arguments)
    if arguments.model is not None:
        if options["model.model_path"] is not None:
            raise ConfigError(f"the model is given twice: {arguments.model} and {options['model.model_path']}")
        options["model.model_path"] = arguments.model
    config = build_config(options)
    _check_parsers(config.server)
    from quartet.checkpoint.resolve import resolve_model
    from quartet.checkpoint.script_file import read_script
    from quartet.supervisor.supervisor import Supervisor

    with stop_signals_exit():
        script = read_script(config.worker.simulated_script)
        config = msgspec.structs.replace(config, resolved=resolve_model(config.model), script=script)
        return Supervisor(config).run()


def _check_parsers(server: ServerConfig) -> None:
    from api_proc.parsing.families import reasoning_format_names, tool_format_names

    parsers = {
        "--tool-call-parser": (server.tool_call_parser, tool_format_names()),
        "--reasoning-parser": (server.reasoning_parser, reasoning_format_names()),
    }
    for flag, (given, known) in parsers.items():
        if given not in ("auto", "none", *known):
            raise ConfigError(f"{flag}: {given!r} is not one of auto, none, {', '.join(known)}")


def _chat(arguments: argparse.Namespace) -> int:
    from quartet.cli.chat import run_chat

    return run_chat(arguments.url, arguments.model, arguments.api_key, max_tokens=arguments.max_tokens)


def _ps(arguments: argparse.Namespace) -> int:
    try:
        if arguments.config:
            lines = [f"{name:<44} {value}" for name, value in _fetch(arguments, "/config").items()]
        else:
            lines = [f"{'ROLE':<12}{'RANK':>4}{'PID':>9}{'EPOCH':>7}{'RESTARTS':>10}  {'STATE':<14}PHASE"]
            lines += [_process_line(row) for row in _fetch(arguments, "/topology")["processes"]]
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError, KeyError, TypeError) as error:
        complain(f"quartet: no engine answers at {arguments.url}: {error}")
        return 1
    print("\n".join(lines))
    return 0


def _process_line(row: dict[str, Any]) -> str:
    return (
        f"{row['role']:<12}{row['rank']:>4}{row['pid']:>9}{row['epoch']:>7}{row['restarts']:>10}  "
        f"{row['state']:<14}{row['phase']}"
    )


def _fetch(arguments: argparse.Namespace, path: str) -> dict[str, Any]:
    """Return the JSON object that the engine gives at `path`."""
    request = urllib.request.Request(arguments.url + path)
    if arguments.api_key:
        request.add_header("authorization", f"Bearer {arguments.api_key}")
    with urllib.request.urlopen(request, timeout=5) as response:
        found = json.load(response)
    if not isinstance(found, dict):
        raise ValueError(f"{path} is no JSON object")
    return found


if __name__ == "__main__":
    sys.exit(main())

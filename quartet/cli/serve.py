"""quartet serve: start the engine and its HTTP server."""

import argparse
import os
from pathlib import Path

import msgspec

from quartet.cli.options import add_options
from quartet.cli.settings_table import changed_lines
from quartet.runtime.failure_box import complain
from quartet.runtime.installed import require_opentelemetry, require_torch
from quartet.runtime.lifetime import stop_signals_exit
from quartet.runtime.output import STDERR, terminal_columns
from quartet.settings import Configuration, configure, unknown_variables
from quartet.wire.config import ServerConfig
from quartet.wire.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model and a flag for every setting."""
    add_launch_arguments(parser)


def add_launch_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what describes a launch: the model, a file of settings, and a flag for every setting."""
    parser.epilog = "A flag counts before its variable (QUARTET_PORT for --port), and that before the file of --config."
    parser.add_argument_group("model").add_argument(
        "model", nargs="?", metavar="MODEL", help="folder, .gguf file or hub id (smollm2)"
    )
    parser.add_argument("--config", metavar="FILE", help="YAML or TOML with settings, named as flags are")
    add_options(parser)


def configuration_of(arguments: argparse.Namespace) -> Configuration:
    """Return the configuration of a launch; raises ConfigError."""
    options = dict(vars(arguments))
    if arguments.model is not None:
        if options["model.model_path"] is not None:
            raise ConfigError(f"the model is given twice: {arguments.model} and {options['model.model_path']}")
        options["model.model_path"] = arguments.model
    configuration = configure(options)
    _check_parsers(configuration.config.server)
    return configuration


def run(arguments: argparse.Namespace) -> int:
    """Run a launch to its end; returns the exit code. Raises ConfigError and ModelError."""
    for line in unknown_variables(os.environ):
        complain(f"quartet: {line}")
    configuration = configuration_of(arguments)
    config = configuration.config
    if not config.worker.simulated_worker:
        require_torch()
    if config.monitoring.otlp_traces_endpoint:
        require_opentelemetry()
    from quartet.checkpoint.cache import held
    from quartet.checkpoint.resolve import resolve_model
    from quartet.checkpoint.script_file import read_script
    from quartet.sizing.device import find_device
    from quartet.sizing.plan import plan_lines
    from quartet.supervisor.supervisor import Supervisor

    with stop_signals_exit():
        script = read_script(config.worker.simulated_script)
        is_coloured = terminal_columns(STDERR) > 0 and not os.environ.get("NO_COLOR")
        config = msgspec.structs.replace(
            config, resolved=resolve_model(config.model), script=script, is_coloured=is_coloured
        )
        device = find_device(config)
        opening = _opening(configuration) + plan_lines(config, device)
        with held(Path(config.require_model().folder)):
            return Supervisor(config, opening=opening).run()


def _opening(configuration: Configuration) -> list[str]:
    """Return what is not as by default. A launch that is refused before it starts ends with its one line alone."""
    changed = changed_lines(configuration)
    title = ["settings that are not at their defaults:"] if changed else []
    return [*configuration.notes, *title, *(f"  {line}" for line in changed)]


def _check_parsers(server: ServerConfig) -> None:
    from api_proc.parsing.families import reasoning_format_names, tool_format_names

    parsers = {
        "--tool-call-parser": (server.tool_call_parser, tool_format_names()),
        "--reasoning-parser": (server.reasoning_parser, reasoning_format_names()),
    }
    for flag, (given, known) in parsers.items():
        if given not in ("auto", "none", *known):
            raise ConfigError(f"{flag}: {given!r} is not one of auto, none, {', '.join(known)}")

"""quartet cache: the converted models on disk, and removing those that are not wanted any more."""

import argparse
import time

import msgspec

from quartet.checkpoint.cache import models_folder
from quartet.checkpoint.cache_listing import CachedModel, cached_models, remove
from quartet.wire.errors import ConfigError

_DAY_S = 86400.0
_UNITS_S = {"h": 3600.0, "d": _DAY_S, "w": 7 * _DAY_S}


class Pruned(msgspec.Struct):
    """What `quartet cache prune --json` prints."""

    removed: list[CachedModel]
    kept: list[CachedModel]
    freed_bytes: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what to do, and which entries to remove."""
    parser.add_argument(
        "action",
        nargs="?",
        choices=("list", "prune"),
        default="list",
        help="list (the default), or prune: remove what is outdated or incomplete",
    )
    parser.add_argument("--all", action="store_true", help="prune: remove every model that no engine is using")
    parser.add_argument(
        "--older-than", metavar="TIME", default="", help="prune: also what was not used for 30d, 12h, 2w"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the table, or prune; returns the exit code. Raises ConfigError and ModelError."""
    age_s = _seconds(arguments.older_than) if arguments.older_than else float("inf")
    if arguments.action == "list":
        if arguments.all or arguments.older_than:
            raise ConfigError("--all and --older-than are for `quartet cache prune`")
        _list(cached_models(), arguments.json)
        return 0
    models, oldest_s = cached_models(), time.time() - age_s
    chosen = [one for one in models if arguments.all or one.state != "ready" or one.used_s < oldest_s]
    removed = [one for one in chosen if remove(one)]
    kept = [one for one in models if one not in removed]
    freed_bytes = sum(one.size_bytes for one in removed)
    if arguments.json:
        print(msgspec.json.encode(Pruned(removed, kept, freed_bytes)).decode())
        return 0
    for one in chosen:
        print(f"{'removed' if one in removed else 'kept, because it is in use:'} {one.name}")
    print(f"{len(removed)} removed, {_size(freed_bytes)} freed; {len(kept)} left in {models_folder()}")
    return 0


def _list(models: list[CachedModel], is_json: bool) -> None:
    if is_json:
        print(msgspec.json.encode(models).decode())
        return
    for one in models:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.used_s))
        state = "in use" if one.is_in_use else one.state
        print(f"{_size(one.size_bytes):>9}  {used}  {state:<10}  {one.name}  {one.source}")
    total = _size(sum(one.size_bytes for one in models))
    print(f"{len(models)} models, {total}, in {models_folder()}; `quartet cache prune` removes what is not ready")


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _seconds(text: str) -> float:
    number, unit = text[:-1], text[-1:]
    if unit not in _UNITS_S or not number.isdecimal():
        raise ConfigError(f"--older-than: {text!r} is not a number and h, d or w, such as 30d")
    return int(number) * _UNITS_S[unit]

"""The first step of start-up: find the model and read what every process needs to know about it.

Imports nothing heavy; a GGUF file is converted and a hub id downloaded by a child process. Called once, by the
command line, before any other process of the launch exists.
"""

import logging
import os
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from quartet.checkpoint import model_folder, tokenizer_files
from quartet.checkpoint.cache import entry_path, is_complete
from quartet.checkpoint.config_fields import not_applied, unknown_fields
from quartet.checkpoint.convert import EXIT_MODEL_ERROR
from quartet.checkpoint.families import FAMILIES
from quartet.checkpoint.readable import check_readable, unreadable
from quartet.checkpoint.source import BUNDLED_NAME, locate_gguf
from quartet.checkpoint.spec import context_limit, parse_spec
from quartet.checkpoint.text_part import other_parts, text_part
from quartet.checkpoint.tokenizer_files import TOKENIZER_FILES
from quartet.checkpoint.weight_files import check_tensors, find_tensors, other_files
from quartet.runtime.home import expand_home
from quartet.runtime.lifetime import stop_signals_blocked
from quartet.wire.config import ModelConfig, ResolvedModel
from quartet.wire.errors import ConfigError, ModelError

logger = logging.getLogger(__name__)

MAX_CONTEXT = 1 << 22
"""Tokens; no published model sees more, and tables of the worker have a row a token."""


def resolve_model(config: ModelConfig) -> ResolvedModel:
    """Return the resolved model that `config` names, after making it local if necessary.

    Raises ModelError (missing, damaged, unsupported, offline, gated) or ConfigError (a setting does not fit the
    model); both say in one line what to do. Conversion and download report progress on stderr.
    """
    try:
        return _resolve(config)
    except OSError as error:
        raise unreadable(error, Path(config.model_path)) from error


def _resolve(config: ModelConfig) -> ResolvedModel:
    folder = local_folder(config)
    files = _read_config(folder)
    architecture = model_folder.architecture(files, folder)
    context_length = _context_length(config, context_limit(files))
    spec = parse_spec(files, context_length, config.quantization)
    if config.load_format != "dummy":
        check_tensors(find_tensors(folder, spec), spec)
    tokenizer_folder = _tokenizer_folder(config, folder)
    tokenizer = model_folder.read_json(tokenizer_folder / "tokenizer_config.json")
    generation = model_folder.read_json(folder / "generation_config.json")
    eos_ids = _eos_token_ids(folder, files, generation, tokenizer_folder, FAMILIES[architecture].ends)
    if any(not 0 <= index < spec.vocab_size for index in eos_ids):
        raise ModelError(f"{folder} names end-of-sequence ids {eos_ids} outside its vocabulary of {spec.vocab_size}")
    bos_id = files.get("bos_token_id")
    _log_ignored(folder, files, architecture, generation)
    return ResolvedModel(
        folder=str(folder),
        name=config.served_model_name or _base_name(config.model_path),
        architecture=architecture,
        vocab_size=spec.vocab_size,
        context_length=context_length,
        eos_token_ids=eos_ids,
        bos_token_id=bos_id if isinstance(bos_id, int) else None,
        chat_template=_chat_template(config, tokenizer_folder, tokenizer),
        default_sampling=model_folder.default_sampling(generation or files),
    )


def _read_config(folder: Path) -> dict[str, Any]:
    whole = model_folder.read_json(folder / "config.json")
    files = text_part(whole)
    if files is not whole:
        left_out = ", ".join(other_parts(whole)) or "the others"
        logger.warning("%s: the text part alone is served, not %s", folder, left_out)
    if files:
        return files
    if (folder / "adapter_config.json").exists():
        raise ModelError(f"{folder} is an adapter without its base model; merge the two and give the merged folder")
    raise ModelError(f"{folder} has no config.json; give a model folder in Hugging Face layout")


def _log_ignored(folder: Path, files: dict[str, Any], architecture: str, generation: dict[str, Any]) -> None:
    """Log what the folder holds beyond what is honoured: it changes nothing in transformers either."""
    unknown = unknown_fields(files)
    if unknown:
        logger.warning("%s/config.json: ignored, because not known: %s", folder, ", ".join(unknown))
    code = files.get("auto_map")
    if code:
        names = ", ".join(map(str, code.values())) if isinstance(code, dict) else code
        logger.warning("%s: code of a model is never run (%s); served as %s", folder, names, architecture)
    not_done = not_applied(generation or files)
    if not_done:
        logger.warning("%s/generation_config.json: not applied to requests: %s", folder, ", ".join(not_done))
    others = other_files(folder)
    if others:
        logger.warning("%s: not read, because no part of the weights: %s", folder, ", ".join(others))


def local_folder(config: ModelConfig) -> Path:
    """Return the folder of the model that `config` names, after a conversion or download if need be.

    Raises ModelError.
    """
    model = config.model_path
    gguf = locate_gguf(model)
    if gguf is not None:
        entry = entry_path(gguf)
        return entry if is_complete(entry) else _run_converter([str(gguf)])
    folder = expand_home(model, ModelError)
    if folder.is_dir():
        return folder.resolve()
    if folder.is_file() or model.startswith(("/", ".", "~")) or model.count("/") != 1:
        raise ModelError(f"{model!r} is neither a folder, a .gguf file, a hub id like Qwen/Qwen3-0.6B nor smollm2")
    return _run_converter([model, "--revision", config.revision])


def _run_converter(arguments: list[str]) -> Path:
    """Run quartet.checkpoint.convert and return the folder it prints; its stderr is inherited."""
    command = [sys.executable, "-m", "quartet.checkpoint.convert", *arguments, "--parent-pid", str(os.getpid())]
    with stop_signals_blocked():
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        lines = child.communicate()[0].strip().splitlines()
    finally:
        child.kill()
    if child.returncode == 0 and lines:
        return Path(lines[-1])
    if child.returncode == EXIT_MODEL_ERROR and lines:
        raise ModelError(lines[-1])
    raise ModelError(f"preparing {arguments[0]} ended with exit code {child.returncode}; the reason is above")


def _tokenizer_folder(config: ModelConfig, folder: Path) -> Path:
    chosen = expand_home(config.tokenizer_path, ModelError) if config.tokenizer_path else folder
    check_readable(chosen / name for name in TOKENIZER_FILES)
    if not (chosen / "tokenizer.json").exists():
        raise ModelError(f"{chosen} has no tokenizer.json; name a folder that has one with --tokenizer-path")
    return chosen


def _eos_token_ids(
    folder: Path, files: dict[str, Any], generation: dict[str, Any], tokenizer_folder: Path, also: Collection[str]
) -> tuple[int, ...]:
    """Return every id that any file of the model calls end of sequence, and those of the tokens `also`, ascending."""
    named = (folder / "config.json", files), (folder / "generation_config.json", generation)
    return tuple(sorted(model_folder.eos_token_ids(*named) | tokenizer_files.eos_token_ids(tokenizer_folder, also)))


def _context_length(config: ModelConfig, limit: int) -> int:
    if limit > MAX_CONTEXT and not config.context_length:
        raise ModelError(f"config.json allows {limit} tokens, more than {MAX_CONTEXT}; give --context-length")
    limit = min(limit, MAX_CONTEXT)
    if config.context_length > limit:
        raise ConfigError(f"context_length is {config.context_length}, but the model's limit is {limit}")
    return config.context_length or limit


def _chat_template(config: ModelConfig, folder: Path, tokenizer: dict[str, object]) -> str | None:
    if not config.chat_template:
        return model_folder.chat_template(folder, tokenizer)
    try:
        return expand_home(config.chat_template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"chat_template is {config.chat_template!r}, which cannot be read: {error}") from error


def _base_name(model: str) -> str:
    if model == BUNDLED_NAME:
        return BUNDLED_NAME
    path = expand_home(model, ModelError)
    return path.stem if path.suffix.lower() == ".gguf" else path.resolve().name

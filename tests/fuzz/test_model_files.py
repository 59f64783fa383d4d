"""Hostile model files: the first cases of the fuzzer, the bounds one by one, and a few against a real launch."""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from quartet.checkpoint.bounded_json import decode_json
from quartet.checkpoint.gguf_reader import read_header
from quartet.wire.errors import ModelError
from tests.fuzz import model_files
from tests.fuzz.hostile_models import TEMPLATES, TOKENIZER, gguf_bytes, gguf_parts
from tokenizer_proc.chat_template import ChatTemplate, SpecialNames


def test_the_first_cases() -> None:
    count, findings = model_files.fuzz(60, seed=0, count=80)
    assert findings == [] and count == 80


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_new_cases_for_two_minutes() -> None:
    count, findings = model_files.fuzz(120, seed=int.from_bytes(os.urandom(4)))
    assert findings == [] and count > 500


# Bounds


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"[" * 100_000 + b"]" * 100_000, "nested"),
        (b'{"a":' * 100 + b"1" + b"}" * 100, "nested"),
        (b"[" + b"[]," * 210_000 + b"[]]", "values"),
        (b"1" * 5000, "digits"),
        (b"{", "Expecting"),
        (b"\xff", "utf-8"),
    ],
)
def test_json_beyond_its_bounds(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        decode_json(data)


def test_json_within_its_bounds() -> None:
    assert decode_json(b"[" * 60 + b"]" * 60)
    assert len(decode_json(json.dumps({str(i): i for i in range(30_000)}).encode())) == 30_000


# The compiler computes no constant, and what Python refuses to compile is refused by name.
@pytest.mark.parametrize("template", ["{{ 'a b ' * 99 | wordwrap(1) | length }}", *TEMPLATES[4:6], TEMPLATES[14]])
def test_a_template_that_does_too_much_is_refused_or_renders_nothing(template: str) -> None:
    try:
        compiled = ChatTemplate(template, SpecialNames({}))
    except ModelError as error:
        assert str(error).isprintable()
    else:
        assert all(len(text) < 1 << 24 for text in compiled.samples())


def test_a_gguf_file_whose_tensors_overlap(tmp_path: Path) -> None:
    metadata, _ = gguf_parts()
    (tmp_path / "x.gguf").write_bytes(gguf_bytes(metadata, [[f"t{i}", [32, 32], 0, 0] for i in range(20)]))
    with pytest.raises(ModelError, match="overlap"):
        read_header(tmp_path / "x.gguf")


def test_a_gguf_file_with_an_array_of_millions(tmp_path: Path) -> None:
    metadata, tensors = gguf_parts()
    data = gguf_bytes({**metadata, "zzz": "end"}, tensors)
    at = data.index(b"zzz") + 3
    array = struct.pack("<IIQ", 9, 0, 6_000_000) + bytes(6_000_000)
    (tmp_path / "x.gguf").write_bytes(data[:at] + array + data[at + 4 + 8 + 3 :])
    with pytest.raises(ModelError, match="more than 5000000 values"):
        read_header(tmp_path / "x.gguf")


def test_an_error_is_one_line_whatever_it_quotes() -> None:
    shown = str(ModelError(f"found {'x' * 10_000}"))
    assert len(shown) == 600 and shown.endswith("...")
    assert str(ModelError("a\nb\x1b[31m\ud800")) == r"a\nb\x1b[31m\ud800"


# A launch

PHASE = re.compile(
    r"\[ *[\d.]+ s\] ([a-z]+-0: (ready|starting|loading weights|waiting)$|memory: |settings that|  [a-z_]+  )"
)


def deep_config(folder: Path) -> None:
    (folder / "config.json").write_bytes(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}")


def many_layers(folder: Path) -> None:
    change(folder / "config.json", num_hidden_layers=10**9)


def endless_context(folder: Path) -> None:
    change(folder / "config.json", max_position_embeddings=2**31 - 1)


def long_context(folder: Path) -> None:
    # Within the bounds of each number; the table of rotary angles would take the machine's memory.
    change(folder / "config.json", max_position_embeddings=1 << 22, head_dim=1 << 16)
    (folder / "model.safetensors").unlink()


def bomb(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}")


def nested_blocks(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for i in range(3) %}" * 80 + "{% endfor %}" * 80)


def change(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **fields}))


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("spoil", "flags"),
    [
        (deep_config, ()),
        (many_layers, ("--load-format", "dummy")),
        (endless_context, ()),
        (nested_blocks, ()),
        pytest.param(bomb, (), marks=pytest.mark.slow),
        pytest.param(long_context, ("--load-format", "dummy"), marks=pytest.mark.slow),
    ],
)
def test_a_launch_ends_with_one_line(spoil: Callable[[Path], None], flags: tuple[str, ...], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(TOKENIZER, folder)
    spoil(folder)
    command = [sys.executable, "-m", "quartet.cli.main", "serve", str(folder), "--device", "cpu", "--port", "0"]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3, done
    assert "Traceback" not in done.stderr + done.stdout
    lines = [line for line in done.stderr.splitlines() if not PHASE.match(line)]
    assert len(lines) == 1 and not done.stdout, done

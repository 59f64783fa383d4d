"""Weights that one process shares and others map: the manifest, the memory, and what happens when either is wrong."""

import os
import resource
import threading
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from tiny_models import CONTEXT, EXPERTS, TINY, VARIANTS, make_weights, resolved, write_folder

from quartet.checkpoint.spec import parse_spec
from quartet.wire.config import Config, ModelConfig, WorkerConfig
from quartet.wire.errors import ConfigError
from quartet.wire.frames import ProcessStatus, ProcessTable
from quartet.wire.ids import Epoch, Role
from tests.support.fake_context import FakeContext, running
from worker_proc.holder import main
from worker_proc.start_up import SharedWeights
from worker_proc.weights.cuda_ipc import SharingError
from worker_proc.weights.dummy import dummy_tensors
from worker_proc.weights.shared import MANIFEST, Manifest, Quantized, map_weights, read_manifest, share, write_manifest
from worker_proc.weights.tensors import LayerTensors, ModelTensors, Shard

CPU = torch.device("cpu")


def tiny(config: dict[str, Any] = TINY, dtype: torch.dtype = torch.float32) -> ModelTensors:
    return dummy_tensors(parse_spec(config, CONTEXT), Shard(), dtype, CPU)


def named(tensors: ModelTensors) -> dict[str, Any]:
    found = {name: getattr(tensors, name) for name in ("embedding", "final_norm", "lm_head")}
    for number, layer in enumerate(tensors.layers):
        found |= {f"{number}.{field.name}": getattr(layer, field.name) for field in fields(LayerTensors)}
        if (experts := found.pop(f"{number}.experts")) is not None:
            found |= {f"{number}.experts.{field.name}": getattr(experts, field.name) for field in fields(experts)}
    return found


@pytest.fixture
def manifest() -> Iterator[Manifest]:
    made, descriptor = share(tiny(), 3)
    yield made
    assert isinstance(descriptor, int)
    os.close(descriptor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [*VARIANTS, *EXPERTS])
def test_mapped_weights_are_those_that_were_shared(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    config = (VARIANTS | EXPERTS)[name]
    made, descriptor = share(tiny(config, dtype), 1)
    write_manifest(made, tmp_path)
    mapped, expected = named(map_weights(read_manifest(tmp_path))), named(tiny(config, dtype))
    assert mapped.keys() == expected.keys()
    for key, tensor in expected.items():
        other = mapped[key]
        assert (other is None) == (tensor is None), key
        if tensor is not None and other is not None:
            assert other.dtype is dtype and torch.equal(other, tensor), key
    assert isinstance(descriptor, int)
    os.close(descriptor)


def test_a_mapping_outlives_the_holder_and_cannot_change_its_weights(manifest: Manifest) -> None:
    first = map_weights(manifest)
    first.final_norm.zero_()
    assert torch.equal(map_weights(manifest).final_norm, tiny().final_norm)
    with pytest.raises(OSError, match="not permitted"):
        os.pwrite(manifest.blocks[0].file, b"\0", 0)


def test_the_manifest_is_private_and_replaced_at_once(manifest: Manifest, tmp_path: Path) -> None:
    write_manifest(manifest, tmp_path)
    write_manifest(msgspec.structs.replace(manifest, epoch=4), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]
    assert (tmp_path / MANIFEST).stat().st_mode & 0o777 == 0o600
    assert read_manifest(tmp_path).epoch == 4


@pytest.mark.parametrize("data", [b"", b"\x80", b"\x96\x01\x01\xa3cpu\xa7float32\x90\x90\x01", b"\xff" * 100, b"cos\n"])
def test_a_damaged_manifest_is_an_error(data: bytes, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_bytes(data)
    with pytest.raises(SharingError, match="manifest"):
        map_weights(read_manifest(tmp_path))


def test_a_cut_manifest_is_an_error_at_every_length(manifest: Manifest, tmp_path: Path) -> None:
    whole = msgspec.msgpack.encode(manifest)
    for length in range(0, len(whole), 7):
        (tmp_path / MANIFEST).write_bytes(whole[:length])
        with pytest.raises(SharingError):
            read_manifest(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"block": 1},
        {"block": -1},
        {"offset_bytes": -4},
        {"offset_bytes": 1 << 40},
        {"shape": (1 << 40, 1 << 20)},
        {"shape": (-1, 4)},
    ],
)
def test_a_piece_outside_its_block_is_an_error(changes: dict[str, Any], manifest: Manifest) -> None:
    pieces = [msgspec.structs.replace(manifest.pieces[0], **changes), *manifest.pieces[1:]]
    with pytest.raises(SharingError, match="embedding"):
        map_weights(msgspec.structs.replace(manifest, pieces=pieces))


@pytest.mark.parametrize("dtype", ["load", "no_such"])
def test_a_piece_of_no_dtype_is_an_error(dtype: str, manifest: Manifest) -> None:
    pieces = [msgspec.structs.replace(manifest.pieces[0], dtype=dtype), *manifest.pieces[1:]]
    with pytest.raises(SharingError, match="no dtype"):
        map_weights(msgspec.structs.replace(manifest, pieces=pieces))


@pytest.mark.parametrize("changes", [{"pieces": []}, {"quantized": [Quantized("layers.0.qkv", "fp8", (8, 8), (1, 8))]}])
def test_a_manifest_that_describes_no_model_is_an_error(changes: dict[str, Any], manifest: Manifest) -> None:
    with pytest.raises(SharingError):
        map_weights(msgspec.structs.replace(manifest, **changes))


def test_weights_whose_holder_is_gone_are_an_error(manifest: Manifest) -> None:
    block = msgspec.structs.replace(manifest.blocks[0], file=9999)
    with pytest.raises(SharingError, match="cannot be mapped"):
        map_weights(msgspec.structs.replace(manifest, blocks=[block]))
    longer = msgspec.structs.replace(manifest.blocks[0], size_bytes=manifest.blocks[0].size_bytes + 1)
    with pytest.raises(SharingError, match="shorter"):
        map_weights(msgspec.structs.replace(manifest, blocks=[longer]))


# The processes on both sides


def table(state: str, epoch: int) -> ProcessTable:
    return ProcessTable([ProcessStatus(Role.WEIGHTS, 0, 1, Epoch(epoch), state, "", 0)], False)


def test_a_worker_waits_for_the_holder_and_counts_that_as_progress(manifest: Manifest, tmp_path: Path) -> None:
    tables, progress = [table("starting", 3)], []
    mapped: list[ModelTensors] = []
    weights = SharedWeights(str(tmp_path), lambda: tables[-1], lambda: progress.append(1))
    thread = threading.Thread(target=lambda: mapped.append(weights.map(CPU)))
    thread.start()
    while len(progress) < 3:
        thread.join(0.005)
    assert not mapped
    write_manifest(manifest, tmp_path)
    tables.append(table("ready", 3))
    thread.join(10)
    assert torch.equal(mapped[0].embedding, tiny().embedding)


def test_the_manifest_of_a_dead_holder_is_not_used(manifest: Manifest, tmp_path: Path) -> None:
    write_manifest(manifest, tmp_path)
    with pytest.raises(SharingError, match="epoch 3"):
        SharedWeights(str(tmp_path), lambda: table("ready", 4), lambda: None).map(CPU)
    with pytest.raises(SharingError, match="on cpu"):
        SharedWeights(str(tmp_path), lambda: table("ready", 3), lambda: None).map(torch.device("cuda"))


async def test_the_holder_shares_the_weights_of_the_checkpoint(tmp_path: Path) -> None:
    model, run_dir = tmp_path / "model", tmp_path / "run"
    model.mkdir()
    run_dir.mkdir()
    write_folder(model, TINY, make_weights(TINY))
    config = Config(
        model=ModelConfig(dtype="float32"), worker=WorkerConfig(device="cpu"), resolved=resolved(model, TINY)
    )
    context = FakeContext(Role.WEIGHTS, config)
    context.run_dir = str(run_dir)
    async with running(main, context):
        mapped = map_weights(read_manifest(run_dir))
        assert context.facts is not None and float(context.facts["share_s"]) > 0
    assert torch.equal(mapped.embedding, make_weights(TINY)["model.embed_tokens.weight"])
    os.close(read_manifest(run_dir).blocks[0].file)
    assert [phase for phase, _ in context.phases] == ["loading weights", "holding weights"]
    assert context.steps_of_progress > 5


async def test_a_limit_on_files_that_is_too_low_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path, TINY, make_weights(TINY))
    config = Config(worker=WorkerConfig(device="cpu"), resolved=resolved(tmp_path, TINY))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        with pytest.raises(ConfigError, match="ulimit -f"):
            await main(FakeContext(Role.WEIGHTS, config))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

"""quartet tune: what is tried, what counts as faster, and the tables on disk, with timings that the test gives."""

import json
import logging

import pytest
import torch

from kernels import skinny_tiles, tile_table
from kernels.tile_table import LinearCase
from kernels.tiles import HopperTile, SkinnyTile, Tile
from quartet.checkpoint.spec import read_spec
from quartet.cli.main import main
from tests.golden.oracles import FOLDER
from worker_proc.tuning import tables
from worker_proc.tuning.linears import SHARED_BYTES, Linear, linears_of, tiles_for
from worker_proc.tuning.tune import better, sizes, step_us, tune_linear

TODAY, FAST, SAME, WRONG, REFUSED = (SkinnyTile(64, 128, 1, 4, stages) for stages in (2, 3, 4, 5, 6))
LINEAR = Linear("split_k", 4096, 14336, 32)


class Timer:
    """Stands in for a card. `times` in microseconds by tile; one that is absent does not compile."""

    def __init__(self, times: dict[Tile | None, float], linear: Linear = LINEAR, rows: int = 8) -> None:
        self.linear, self.rows, self._times = linear, rows, times

    def today(self) -> Tile | None:
        return TODAY

    def us(self, tile: Tile | None) -> float:
        if tile not in self._times:
            raise RuntimeError("out of resource: shared memory")
        return self._times[tile]

    def error(self, tile: Tile | None) -> float:
        return 0.5 if tile is WRONG else 0.0


@pytest.fixture(autouse=True)
def no_table():
    yield
    tile_table.use({})


def test_the_fastest_right_tile_is_taken() -> None:
    timer = Timer({TODAY: 30.0, None: 40.0, FAST: 25.0, SAME: 29.8, WRONG: 1.0})
    outcome = tune_linear(timer, [FAST, SAME, WRONG, REFUSED])
    assert (outcome.is_better, outcome.tile, outcome.before_us, outcome.after_us) == (True, FAST, 30.0, 25.0)
    assert better([outcome]) == {LinearCase("split_k", 4096, 14336, 8): FAST}
    assert step_us([outcome], 8) == (32 * 30.0, 32 * 25.0)


def test_what_is_hardly_faster_changes_nothing() -> None:
    outcome = tune_linear(Timer({TODAY: 30.0, None: 40.0, SAME: 29.8}), [SAME])
    assert not outcome.is_better and outcome.after_us == 30.0 and better([outcome]) == {}


def test_where_cublas_wins_over_a_split_no_form_of_the_linear_is_ours() -> None:
    outcome = tune_linear(Timer({TODAY: 30.0, None: 20.0}), [])
    assert better([outcome]) == {LinearCase(form, 4096, 14336, 8): None for form in ("split_k", "plain")}


def test_rows_are_measured_up_to_the_first_size_that_covers_them() -> None:
    assert list(sizes(20)) == [1, 8, 16, 32] and list(sizes(500)) == list(tile_table.ROW_SIZES)


@pytest.mark.parametrize("rows", tile_table.ROW_SIZES)
def test_every_tile_that_is_tried_divides_its_linear_and_fits(rows: int) -> None:
    spec = read_spec(FOLDER / "models" / "qwen3", 64)
    linears = linears_of(spec)
    assert sum(one.uses for one in linears) == 4 * spec.num_layers + 1
    for linear in (*linears, LINEAR, Linear("gated", 28672, 4096, 32), Linear("plain", 128256, 4096, 1)):
        for tile in tiles_for(linear, rows, is_hopper=True):
            assert linear.depth % (tile.block_k * tile.splits) == 0
            if isinstance(tile, HopperTile):
                assert linear.width % 64 == 0 and tile.stages * tile.block_k * 2 * (64 + 8) <= SHARED_BYTES
            else:
                assert linear.width % tile.block_n == 0 and rows <= 64
    assert tiles_for(LINEAR, rows, is_hopper=True)


def test_a_table_counts_before_the_rules_for_the_rows_that_it_covers() -> None:
    weight = torch.empty(4096, 14336, dtype=torch.bfloat16)
    rules = [skinny_tiles.split_k_tile(weight, rows) for rows in (5, 9, 200)]
    tile_table.use({LinearCase("split_k", 4096, 14336, 8): FAST, LinearCase("plain", 4096, 14336, 8): None})
    assert [skinny_tiles.split_k_tile(weight, rows) for rows in (5, 9, 200)] == [FAST, *rules[1:]]
    assert skinny_tiles.unsplit_tile(weight, 8) is None and skinny_tiles.gated_tile(weight, 8) is not None
    assert skinny_tiles.split_k_tile(weight.float(), 5) is None


def test_tables_of_several_models_share_a_file(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("QUARTET_CACHE_DIR", str(tmp_path))
    path, hopper = tables.tuned_path("NVIDIA X1 80GB"), HopperTile(128, 2, 6)
    assert tables.use_tables("NVIDIA X1 80GB") == 0
    tables.add_to(
        path, "NVIDIA X1 80GB", {LinearCase("plain", 256, 128, 1): FAST, LinearCase("gated", 64, 64, 8): None}
    )
    tables.add_to(path, "NVIDIA X1 80GB", {LinearCase("plain", 256, 128, 1): hopper})
    assert path == tmp_path / "tiles" / "nvidia-x1-80gb.json" and tables.use_tables("NVIDIA X1 80GB") == 2
    weight = torch.empty(256, 128, dtype=torch.bfloat16)
    assert skinny_tiles.unsplit_tile(weight, 1) == hopper
    assert tables.use_tables("NVIDIA X2") == 0 and skinny_tiles.unsplit_tile(weight, 1) != hopper


@pytest.mark.parametrize("damage", ["", "{}", "[[]]", '["unknown", 1]', '["hopper", -1, 2, 3]', '["hopper", 1]'])
def test_a_damaged_table_is_left_alone(damage: str, tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setenv("QUARTET_CACHE_DIR", str(tmp_path))
    path = tables.tuned_path("card")
    tables.add_to(path, "card", {LinearCase("plain", 256, 128, 1): FAST})
    if damage.startswith("["):
        content = json.loads(path.read_text())
        content["linears"][0][4] = json.loads(damage)
        damage = json.dumps(content)
    path.write_text(damage)
    assert tables.use_tables("card") == 0 and str(path) in caplog.text


def test_a_table_of_another_triton_is_left_alone(tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setenv("QUARTET_CACHE_DIR", str(tmp_path))
    tables.add_to(tables.tuned_path("card"), "card", {LinearCase("plain", 256, 128, 1): FAST})
    monkeypatch.setattr(tables, "_triton_version", lambda: "99.0")
    with caplog.at_level(logging.INFO):
        assert tables.use_tables("card") == 0
    assert "run quartet tune again" in caplog.text


def test_what_quartet_brings_can_be_read() -> None:
    for path in tables.SHIPPED.glob("*.json"):
        card = json.loads(path.read_text())["card"]
        assert tables.use_tables(card) > 0 and path.name == tables.tuned_path(card).name


def test_without_a_gpu_there_is_nothing_to_tune(capsys) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main(["tune", str(FOLDER / "models" / "qwen3")]) != 0
    assert "on a CPU there is nothing to tune" in capsys.readouterr().err


@pytest.mark.gpu
def test_a_model_is_tuned_on_the_card(tmp_path, monkeypatch, capsys) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    monkeypatch.setenv("QUARTET_CACHE_DIR", str(tmp_path))
    assert main(["tune", str(FOLDER / "models" / "qwen3"), "--max-rows", "8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [gain["rows"] for gain in found["gains"]] == [1, 8] and found["read_bytes_per_s"] > 1e11
    assert all(0 < gain["after_us"] <= gain["before_us"] for gain in found["gains"])

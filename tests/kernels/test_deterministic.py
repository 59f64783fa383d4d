"""--deterministic on the Triton operations: the same bytes with and without graphs, in whatever company."""

import kernel_cases as cases
import pytest

from tests.golden.oracles import FOLDER
from tests.support.local_engine import LocalEngine, make_config
from tests.support.same_bytes import alone, make_requests, ways

GRAPHS, NO_GRAPHS = {"cuda_graph_max_bs": 8}, {"disable_cuda_graph": True}
QUICK = {"chunked", "after deaths of the worker"}


@pytest.mark.parametrize(
    ("count", "graphs"),
    [
        pytest.param(3, NO_GRAPHS, id="few"),
        pytest.param(9, NO_GRAPHS, id="eager", marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
        pytest.param(9, GRAPHS, id="graphs", marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
    ],
)
def test_a_request_has_the_same_bytes_in_whatever_company(count, graphs) -> None:
    is_quick = count < 9
    settings = {"device": cases.DEVICE.type, "attention_backend": "triton", "max_total_tokens": 1024, **graphs}
    config = make_config(
        FOLDER / "models" / "llama", "bfloat16", tokenizer=FOLDER / "models" / "qwen3", deterministic=True, **settings
    )
    engine = LocalEngine(config, max_in_flight=2)
    requests = make_requests(count, 40, 3 if is_quick else 8, 500)
    expected = alone(engine, requests)
    for name, run in ways(engine, requests, (10, 8) if is_quick else (30, 25)).items():
        if name in QUICK or not is_quick:
            assert run() == expected, name

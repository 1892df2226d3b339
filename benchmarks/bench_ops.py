"""The op suite's cases under pytest-benchmark: `pytest benchmarks -k padding`.

Each is checked, then timed beside its peers in alternating rounds. The terminal shows the ratios,
pytest-benchmark's own table our times.
"""

import op_suite
import pytest
from op_case import OURS, TINY  # the environment's SPANBERT_FAST_BENCH_TINY
from timing import Clock

from spanbert_fast import _extension

BUDGET = 2.0  # seconds of each case's rounds
ITEMS = op_suite.items("cpu", threads=2)

pytestmark = pytest.mark.skipif(
    _extension._C is None, reason="installed without the compiled extension"
)


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: "-".join(map(str, item.name().values())))
def test_op(benchmark, capsys, threads, item):
    threads(item.threads)
    case = item.case("cpu", "tiny" if TINY else "cpu")
    skipped = {
        name: "slow ones are left to op_suite.py"
        for name, provider in case.providers.items()
        if getattr(provider, "slow", False)
    }
    record = op_suite.measure(
        item, case, Clock(), BUDGET, skipped, check_only=not benchmark.enabled
    )
    ours = record["providers"][OURS]
    assert ours["passed"], ours
    benchmark.extra_info.update(record)
    rounds = ours.get("rounds", 1)
    benchmark.pedantic(case.call(OURS, item.backward), rounds=rounds, warmup_rounds=1)
    if benchmark.enabled:
        with capsys.disabled():
            print("\n" + op_suite.show(record))

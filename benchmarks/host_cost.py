#!/usr/bin/env python
"""Host microseconds that each layer of a training step costs, for ours and for Hugging Face's.

Steps (forward, backward, clipping and update) run eagerly, on a few tokens, so that a GPU always
waits for its host. Models have 2 and 6 layers; a layer's cost is their difference divided by 4. It
is a lower bound of eager steps on a fast GPU; captured steps do not have it. On a CPU it includes
the layer's own work.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
if str(FOLDER) not in sys.path:  # PYTHONSAFEPATH leaves it out
    sys.path.append(str(FOLDER))

from results_format import RESULTS, document, write_document
from training_providers import Case
from training_worker import Session

LAYERS = (2, 6)
PROVIDERS = ("ours-eager", "hf-sdpa")


def seconds_of(name: str, case: Case, threads: int, steps: int) -> float:
    """Median wall-clock seconds of a provider's step."""
    session = Session(name, case, threads)
    for _ in range(3):
        session.host_step()
    return statistics.median(session.host_step() for _ in range(steps))


def measure(device: str, threads: int, tiny: bool) -> list[dict[str, Any]]:
    """A record for each provider, and the ratio of the two."""
    sizes = {"hidden_size": 64, "vocab_size": 500} if tiny else {}
    steps = 3 if tiny else 20
    cases = [Case(n, 16, (16, 16), device=device, **sizes) for n in LAYERS]
    found = {}
    for name in PROVIDERS:
        few, many = (seconds_of(name, case, threads, steps) for case in cases)
        found[name] = 1e6 * (many - few) / (LAYERS[1] - LAYERS[0])
    records = [
        {"what": f"host time of a layer, {name}", "value": value, "unit": "us"}
        for name, value in found.items()
    ]
    share = found[PROVIDERS[0]] / found[PROVIDERS[1]]
    return [*records, {"what": "ours by Hugging Face's", "value": share, "unit": "x"}]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="on the CPU (1)")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--output", type=Path, default=RESULTS / "host_cost.json")
    options = parser.parse_args(argv)
    found = measure(options.device, options.threads, options.tiny)
    for record in found:
        print("{what:<36}{value:>9.2f} {unit}".format(**record))
    content = document("host_cost", options.threads, found, options.device)
    write_document(options.output, content)
    return 0


if __name__ == "__main__":
    sys.exit(main())

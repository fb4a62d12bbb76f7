"""y = a b x, of which (a, b) and (−a, −b) are the same function: are both modes held, and how near is the bound?

    python benchmarks/paper_two_modes.py [--quick] [--seeds 5]

The problem "abx" of models/: ten data of slope 1.5, noise 0.3, a and b of prior Normal(0, 1); the evidence by
quadrature over a grid of 801 × 801. A guide that holds one of the modes alone is at best log 2 = 0.693 nats below the
evidence, and its share of draws with a > 0 is 0 or 1; the exact one is a half. 2 000 steps of `fit`, 10 000 draws. The
paper's guide is a flow of couplings over both weights: here with 8 couplings of 64 units. NUTS: four chains of 500
draws after 500 steps of adaptation, whose share says in which mode how many chains are. One thread, two slow cores
shared with others; seconds are CPU seconds of the process.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from paper_methods import options_of
from timing import medians, run_cells, table

from models import PROBLEMS
from pyro_hypernet import AutoHypernet, Plan, fit, nuts
from pyro_hypernet.evaluation.importance import elbo
from pyro_hypernet.maps.hypernets import coupling

NUM_STEPS, NUM_DRAWS = 2000, 10_000
PROBLEM = PROBLEMS["abx"]()
COUPLINGS = partial(coupling, num_layers=8, hidden=(64,))
GUIDES: dict[str, Callable[[Any], AutoHypernet]] = {
    "default guide": AutoHypernet,
    "num_components=2": partial(AutoHypernet, num_components=2),
    "8 couplings": partial(AutoHypernet, hypernet=COUPLINGS, structure="full"),
    "8 couplings, wide start": partial(AutoHypernet, hypernet=COUPLINGS, structure="full", init_scale=1.0),
    "8 couplings, wide start, data count .01 at first": partial(
        AutoHypernet, plan=Plan(hypernet=COUPLINGS, structure="full", init_scale=1.0, anneal=0.01)
    ),
    "mean field": lambda model: AutoHypernet(model, "identity", "full"),
}
NUTS = "NUTS, 4 chains"


def run(method: str, seed: int, num_steps: int) -> dict[str, float]:
    """Share of draws with a > 0, the sd of a b, and the bound less the log evidence."""
    if method == NUTS:
        samples, found = nuts(PROBLEM.model, *PROBLEM.args, num_samples=500, warmup_steps=500).samples, {}
    else:
        guide = GUIDES[method](PROBLEM.model)
        fit(PROBLEM.model, guide, PROBLEM.args, num_steps=num_steps, progress=False)
        samples = guide.sample_posterior(NUM_DRAWS)
        bound = elbo(PROBLEM.model, guide, *PROBLEM.args, num_samples=NUM_DRAWS)[0]
        found = {"gap": float(bound) - PROBLEM.truth["log_evidence"]}
    share = float((samples["a"] > 0).double().mean())
    return {**found, "share": share, "both": float(0.1 < share < 0.9), "sd": float((samples["a"] * samples["b"]).std())}


def report(records: list[dict]) -> str:
    rows = []
    for method in dict.fromkeys(record["method"] for record in records):
        mine = [record for record in records if record["method"] == method]
        both = f"{sum(record['both'] for record in mine):.0f} of {len(mine)}"
        rows.append([method, both, *medians(mine, {"share": 2, "gap": 3, "sd": 4, "seconds": 0})])
    headings = ["", "seeds with both modes", "share a > 0", "bound − log evidence", "sd of a b", "CPU seconds"]
    return f"{__doc__}\nMedian [least, greatest] of the seeds.\n\n{table(headings, rows)}"


def main() -> None:
    options = options_of(__doc__, seeds=5, quick="one seed, 300 steps")
    seeds, num_steps = (1, 300) if options.quick else (options.seeds, NUM_STEPS)
    cells = [
        {"method": method, "seed": seed, "num_steps": num_steps} for seed in range(seeds) for method in (*GUIDES, NUTS)
    ]
    run_cells("paper_two_modes", cells, run, report, quick=options.quick)


if __name__ == "__main__":
    main()

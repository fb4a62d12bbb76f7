"""10 000 posterior draws and their predictions at 1 000 inputs against Pyro's Predictive(parallel=False).

    python benchmarks/speed_of_draws_and_predictions.py --data FOLDER [--quick]

Pyro runs the model draw by draw, so its time is proportional to their number: 500 draws are timed and scaled up.
Both draw from the same untrained guide, of the network of toy-gap (D = 61, 20 hidden units). One thread, contestants in
turn. Importance weights, k-hat and the matrix of log likelihoods of 10 000 draws are timed beside them.
"""

import argparse
from functools import partial

import pyro
import torch
from data_folder import options_with_data
from pyro.infer import Predictive
from timing import in_turn, keep, median, spell_ratio, table

from models.references import read_reference
from pyro_hypernet import AutoHypernet, khat, predict
from pyro_hypernet.evaluation.predict import log_likelihood

DRAWS, INPUTS, TIMED_BY_PYRO = 10_000, 1000, 500


def main() -> None:
    """Times and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the draws, three repeats")
    options = options_with_data(parser)
    torch.set_num_threads(1)
    draws, repeats = (DRAWS // 10, 3) if options.quick else (DRAWS, 7)
    reference = read_reference(options.data, "toy-gap")
    model, args = reference.model, reference.args
    x = torch.linspace(-2, 2, INPUTS)[:, None]
    made, rows, records = {}, [], []
    for structure in ("full", "informed"):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        guide = AutoHypernet(model, structure=structure).setup(*args)
        few = draws * TIMED_BY_PYRO // DRAWS
        theirs = Predictive(model, guide=guide, num_samples=few, parallel=False, return_sites=("f", "y"))
        made[f"{structure}: predict"] = partial(predict, model, guide, x, num_samples=draws, return_sites=("f", "y"))
        made[f"{structure}: Predictive"] = partial(theirs, x)
        made[f"{structure}: draws alone"] = partial(guide.sample_posterior, draws)
        made[f"{structure}: weights and k-hat"] = partial(khat, model, guide, *args, num_samples=draws)
        made[f"{structure}: log likelihoods of the data"] = partial(
            log_likelihood, model, guide, *args, num_samples=draws
        )
    for function in made.values():
        function()
    seconds = in_turn(made, repeats=repeats)
    for who in made:
        scale = DRAWS / TIMED_BY_PYRO if who.endswith("Predictive") else 1
        seconds[who] = [scale * value for value in seconds[who]]
    for who, values in seconds.items():
        baseline = seconds[who.split(":")[0] + ": Predictive"]
        records.append({"who": who, "draws": draws, "inputs": INPUTS, "seconds": values})
        rows.append([who, f"{median(values):.3f}", spell_ratio(values, baseline)])
    text = (
        f"Seconds for {draws} draws, {INPUTS} inputs, one thread; ratio to Pyro's Predictive, whose time is scaled up "
        f"from {few} draws; median of {repeats} [least, greatest]. Made by speed_of_draws_and_predictions.py.\n\n"
        + table(["what", "seconds", "ratio"], rows)
    )
    keep("speed_draws", records, text, quick=options.quick)


if __name__ == "__main__":
    main()

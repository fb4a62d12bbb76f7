"""A training step of AutoHypernet against Pyro's SVI with AutoNormalizingFlow of the same layers, widths, particles.

    python benchmarks/speed_a_step_takes_a_fraction_of_pyros.py --data FOLDER [--quick] [--particles 8]

Four affine couplings with one hidden layer of 64 on the networks of `models/references.py` (D = 61, 113, 337), written
so that they broadcast over Pyro's particle plate. One thread, median of the repeats, contestants in turn. `fit`: the
loss, gradient, clipping, checks and Adam of one step of `pyro_hypernet.fit`.
"""

import argparse
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import torch
from data_folder import options_with_data
from pyro.distributions.torch_transform import ComposeTransformModule
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormalizingFlow
from timing import in_turn, keep, median, spell_ratio, table
from torch import Tensor

from models.references import ReferenceNet, read_reference
from pyro_hypernet import AutoHypernet, VectorizedELBO
from pyro_hypernet.maps.hypernets import coupling
from pyro_hypernet.train.optimiser import Optim, Optimiser
from pyro_hypernet.train.step import FlatParameters, Stepper

TASKS = ("toy-gap", "penguins", "moons")
HIDDEN, LAYERS = 64, 4


class Broadcasting(ReferenceNet):
    """The same network for weights with leading axes."""

    def __call__(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        f = x
        for i, (fan_in, fan_out) in enumerate(zip(self.widths, self.widths[1:], strict=False)):
            scale = x.new_tensor(1.5 / fan_in**0.5)
            weight = pyro.sample(f"W{i}", dist.Normal(x.new_zeros(fan_in, fan_out), scale).to_event(2))
            bias = pyro.sample(f"b{i}", dist.Normal(x.new_zeros(fan_out), 1.0).to_event(1))
            weight, bias = (
                value.reshape(*_particles(value, dim), *value.shape[-dim:]) for value, dim in ((weight, 2), (bias, 1))
            )
            f = (torch.tanh(f) if i else f) @ weight + bias[..., None, :]
        fn = self._distribution(f)
        with pyro.plate("data", len(x)):
            pyro.sample("y", fn, obs=y)
        return f


def _particles(value: Tensor, dim: int) -> tuple[int, ...]:
    """The leading axes of a weight without the one that stands for the data."""
    lead = value.shape[: value.dim() - dim]
    return tuple(lead[:-1]) if lead and lead[-1] == 1 else tuple(lead)


def pyros_flow(model: Any) -> AutoNormalizingFlow:
    """Couplings with the order reversed between them."""

    def make(dim: int) -> ComposeTransformModule:
        layers = []
        for _ in range(LAYERS):
            layers += [
                transforms.affine_coupling(dim, hidden_dims=[HIDDEN]),
                transforms.Permute(torch.arange(dim).flip(0), cache_size=1),
            ]
        return ComposeTransformModule(layers)

    return AutoNormalizingFlow(model, make)


def stepper(model: Any, args: tuple, particles: int, compile: str) -> tuple[Any, str]:
    """A function that makes one step of `fit`, and how it runs."""
    guide = _ours(model)
    guide.setup(*args)
    elbo = VectorizedELBO(particles, gradient="total")
    elbo.prepare(model, guide, args, {})
    parameters = FlatParameters(list(guide.parameters()))
    step = Stepper(model, guide, elbo, parameters, compile=compile, num_steps=10**6, is_fixed=True)
    run = Optimiser(parameters.vectors, 10**6, Optim(1e-3, keep="best"))

    def once() -> None:
        run.step(step(args))

    for _ in range(5):
        once()
    return once, step.compile


def _ours(model: Any) -> AutoHypernet:
    return AutoHypernet(model, partial(coupling, num_layers=LAYERS, hidden=(HIDDEN,), mix="none"), "full")


def _svi(model: Any, guide: Any, elbo: Any, args: tuple) -> Any:
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 1e-3}), elbo)
    for _ in range(40):  # VectorizedELBO captures after thirty
        svi.step(*args)
    return partial(svi.step, *args)


def contestants(model: Any, args: tuple, particles: int, compiles: tuple[str, ...]) -> dict[str, Any]:
    """Everything that is timed, warmed up."""
    trace = Trace_ELBO(num_particles=particles, vectorize_particles=True)
    made = {
        "Pyro flow": _svi(model, pyros_flow(model), trace, args),
        "SVI + Trace_ELBO": _svi(model, _ours(model), trace, args),
        "SVI + VectorizedELBO": _svi(model, _ours(model), VectorizedELBO(particles, gradient="total"), args),
    }
    for compile in compiles:
        once, used = stepper(model, args, particles, compile)
        made[f"fit, {used}"] = once
    return made


def main() -> None:
    """Times all tasks and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--particles", type=int, default=8)
    parser.add_argument("--compile", nargs="*", default=["off", "graph"], help="inductor too: a minute for each task")
    parser.add_argument("--out", default="speed_step", help="name of the results")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--quick", action="store_true", help="toy-gap, no compilation, three repeats")
    options = options_with_data(parser)
    torch.set_num_threads(1)
    tasks, compiles, repeats = options.tasks, tuple(options.compile), 9
    if options.quick:
        tasks, compiles, repeats = ["toy-gap"], ("off", "graph"), 3
    rows, records = [], []
    for name in tasks:
        reference = read_reference(options.data, name)
        net = reference.model
        model = Broadcasting(net.widths, net.likelihood, net.sigma)
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        made = contestants(model, reference.args, options.particles, compiles)
        seconds = in_turn(made, repeats=repeats, calls=10)
        dim = AutoHypernet(model, structure="full").setup(*reference.args).latent_dim
        for who, values in seconds.items():
            records.append({"task": name, "dim": dim, "particles": options.particles, "who": who, "seconds": values})
            rows.append([name, dim, who, f"{1e3 * median(values):.2f}", spell_ratio(values, seconds["Pyro flow"])])
    text = (
        f"Milliseconds per step, {options.particles} particles, one thread; ratio to Pyro's SVI with "
        f"AutoNormalizingFlow, median of {repeats} [least, greatest]. Made by "
        "speed_a_step_takes_a_fraction_of_pyros.py.\n\n" + table(["task", "D", "who", "ms", "ratio"], rows)
    )
    keep(options.out, records, text, quick=options.quick)


if __name__ == "__main__":
    main()

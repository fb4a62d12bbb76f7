"""NumPyro's autoguides and its NUTS on the same networks, on one thread.

Training is one compiled scan: Adam, cosine decay to zero, gradients clipped by their norm, Trace_ELBO. Guides start as
NumPyro starts them, with `init_scale=0.1` where there is one.
"""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import torch
from jax.example_libraries import optimizers
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO, autoguide
from peers_pyro import NUM_DRAWS, NUM_WEIGHTS, Outcome, judge
from torch import Tensor

from models.references import Reference, ReferenceNet

CLIP = 100.0
# Losses computed at once when the bound is measured.
_CHUNK = 500


def numpyro_model(net: ReferenceNet) -> Callable[..., None]:
    """The same network as a NumPyro model, with the same names of sites.

    Args:
        net: The Pyro model.

    Returns:
        `model(x, y=None)` on JAX arrays.
    """

    def model(x: jax.Array, y: jax.Array | None = None) -> None:
        f = x
        for i, (fan_in, fan_out) in enumerate(zip(net.widths, net.widths[1:], strict=False)):
            scale = 1.5 / fan_in**0.5
            weight = numpyro.sample(f"W{i}", dist.Normal(jnp.zeros((fan_in, fan_out)), scale).to_event(2))
            bias = numpyro.sample(f"b{i}", dist.Normal(jnp.zeros(fan_out), 1.0).to_event(1))
            f = (jnp.tanh(f) if i else f) @ weight + bias
        if net.likelihood == "categorical":
            fn = dist.Categorical(logits=f)
        elif net.likelihood == "bernoulli":
            fn = dist.Bernoulli(logits=f[:, 0])
        else:
            sigma = net.sigma if net.sigma is not None else numpyro.sample("sigma", dist.LogNormal(-1.5, 0.75))
            fn = dist.Normal(f[:, 0], sigma)
        with numpyro.plate("data", len(x)):
            numpyro.sample("y", fn, obs=y)

    return model


class ClippedByNorm(numpyro.optim.Adam):
    """Adam whose gradients are clipped by their norm over all parameters; NumPyro's ClippedAdam clips entries."""

    def update(self, g: Any, state: Any, value: Any = None) -> Any:
        """One step with clipped gradients."""
        return super().update(optimizers.clip_grads(g, CLIP), state, value)


def run_autoguide(
    make: Callable[[Any], autoguide.AutoGuide],
    reference: Reference,
    num_steps: int,
    num_particles: int,
    learning_rate: float,
    seed: int,
) -> Outcome:
    """Trains and measures the guide that `make` builds on the model.

    The weights are single draws of the training loss, so that DAIS gets those of its own bound.

    Raises:
        FloatingPointError: If the fit ends in parameters that are not numbers.
    """
    model, args = numpyro_model(reference.model), _arrays(reference)
    key_of_fit, key_of_weights, key_of_draws = jax.random.split(jax.random.PRNGKey(seed), 3)

    def rate(step: jax.Array) -> jax.Array:
        return learning_rate * 0.5 * (1 + jnp.cos(math.pi * step / num_steps))

    start = time.perf_counter()
    guide = make(model)
    svi = SVI(model, guide, ClippedByNorm(rate), Trace_ELBO(num_particles=num_particles))
    result = jax.block_until_ready(svi.run(key_of_fit, num_steps, *args, progress_bar=False))
    seconds = time.perf_counter() - start
    if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(result.params)):
        bad = int(jnp.argmin(jnp.isfinite(result.losses)))
        raise FloatingPointError(f"The fit ended in parameters that are not numbers; the first bad loss at step {bad}.")
    one = Trace_ELBO()

    def log_weight(key: jax.Array) -> jax.Array:
        return -one.loss(key, result.params, model, guide, *args)

    keys = jax.random.split(key_of_weights, NUM_WEIGHTS)
    log_weights = jax.jit(lambda keys: jax.lax.map(log_weight, keys, batch_size=_CHUNK))(keys)
    samples = guide.sample_posterior(key_of_draws, result.params, sample_shape=(NUM_DRAWS,))
    return judge(reference, _tensors(samples, reference), seconds, np.asarray(log_weights))


def run_nuts(
    reference: Reference, num_steps: Any = None, num_particles: Any = None, learning_rate: Any = None, seed: int = 0
) -> Outcome:
    """Four vectorised chains of NUTS, 1 000 warm-up and 2 000 draws each, thinned to 1 000 in all.

    The middle three arguments are those of every peer and have no meaning here.
    """
    start = time.perf_counter()
    kernel = NUTS(numpyro_model(reference.model))
    mcmc = MCMC(kernel, num_warmup=1000, num_samples=2000, num_chains=4, chain_method="vectorized", progress_bar=False)
    mcmc.run(jax.random.PRNGKey(seed), *_arrays(reference), extra_fields=("diverging",))
    samples = jax.block_until_ready(mcmc.get_samples())
    seconds = time.perf_counter() - start
    thinned = {name: value[:: len(value) // NUM_DRAWS] for name, value in samples.items()}
    divergences = float(mcmc.get_extra_fields()["diverging"].sum())
    return judge(reference, _tensors(thinned, reference), seconds, notes={"divergences": divergences})


def _arrays(reference: Reference) -> tuple[jax.Array, jax.Array]:
    x, y = reference.args
    return jnp.asarray(x.numpy()), jnp.asarray(y.numpy())


def _tensors(samples: dict[str, jax.Array], reference: Reference) -> dict[str, Tensor]:
    return {name: torch.tensor(np.asarray(samples[name])) for name in reference.samples}


_GUIDES: dict[str, Callable[[Any], autoguide.AutoGuide]] = {
    "AutoNormal": partial(autoguide.AutoNormal, init_scale=0.1),
    "AutoMultivariateNormal": partial(autoguide.AutoMultivariateNormal, init_scale=0.1),
    "AutoLowRankMultivariateNormal": partial(autoguide.AutoLowRankMultivariateNormal, init_scale=0.1),
    "AutoIAFNormal": autoguide.AutoIAFNormal,
    "AutoBNAFNormal": autoguide.AutoBNAFNormal,
    "AutoDAIS(8), diagonal": partial(autoguide.AutoDAIS, K=8, base_dist="diagonal", init_scale=0.1),
    "AutoDAIS(8), Cholesky": partial(autoguide.AutoDAIS, K=8, base_dist="cholesky", init_scale=0.1),
}

NUMPYRO_PEERS: dict[str, Callable[..., Outcome]] = {
    **{f"numpyro {name}": partial(run_autoguide, make) for name, make in _GUIDES.items()},
    "numpyro NUTS": run_nuts,
}

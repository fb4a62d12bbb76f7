"""Components of a mixture that learn parameters of the model with their draws: each has the model as its own."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pyro_hypernet.bnn.bayesian_net import COMPONENT, BayesianNet
from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from pyro_hypernet.guide.model_state import gather
from pyro_hypernet.model.vectorize import Model

_NO_POSTERIOR = (
    "Every component of this mixture has learnt parameters of its own, so that the same values of the sites are "
    "another network, and there is no one posterior to weigh draws by or to train all for together. fit trains them, "
    "predict and score run them; for a density take mixture.components and mixture.models_for(model) one by one."
)


def have_own_models(parts: Sequence[AutoHypernet]) -> bool:
    """Whether components learn parameters with their draws.

    Args:
        parts: Guides after `setup`.

    Raises:
        ValueError: If they do, and have not each a network of `bayesianize`; or if their models' fixed parts differ.
    """
    kept = [part._uninitialised_model[0] for part in parts if part._uninitialised_model]  # not all after pickling
    models = list({id(model): model for model in kept}.values())
    of_networks = [name for model in models if isinstance(model, BayesianNet) for name in model._learnt]
    learnt = list(dict.fromkeys([*(name for part in parts for name in part._stored_names), *of_networks]))
    are_own = len(models) == len(kept) and all(isinstance(model, BayesianNet) for model in models)
    if learnt and not are_own:
        raise ValueError(
            f"The model learns parameters of its own, {learnt[:4]}, of which every component needs its own. A network "
            "of bayesianize has them by GuideMixture.from_starts, or by guides of copies of it; of any other model "
            "make them random, or fix them by requires_grad_(False)."
        )
    states = [gather(model, {}).tensors for model in models]
    fixed = [{key: t for key, t in state.items() if not (learnt and t.requires_grad)} for state in states]
    for state in fixed[1:]:
        if state.keys() != fixed[0].keys() or not all(torch.equal(state[key], fixed[0][key]) for key in state):
            raise ValueError(
                "The components were made for models whose fixed parameters or buffers differ; a mixture is of one "
                "model: make the guides for one, or for copies of it."
            )
    return bool(learnt)


def own_models(parts: Sequence[AutoHypernet], model: Model) -> tuple[BayesianNet, ...]:
    """The components' own models.

    Args:
        parts: The guides.
        model: What a verb was given as their model.

    Raises:
        ValueError: If that is none like these.
    """
    own = tuple(part._its_model() for part in parts)
    if not isinstance(model, BayesianNet) or model.site_names != own[0].site_names:
        raise ValueError(
            f"The mixture's components have models like {own[0]!r}; got {model!r}: give the model that the mixture was "
            "made for."
        )
    return own


def log_prob_of_components(parts: Sequence[AutoHypernet], log_weights: Tensor, samples: Mapping[str, Tensor]) -> Tensor:
    """log π_k q_k of draws with their components.

    Args:
        parts: The guides.
        log_weights: log π in nats, shape `(K,)`.
        samples: A dict from site to `(..., *shape)`, and the numbers k, shape `(...)`.

    Returns:
        In nats, shape `(...)`.
    """
    w, log_det = parts[0].layout.unconstrain({name: samples[name] for name in samples if name != COMPONENT})
    log_q = torch.stack([part.unconstrained_log_prob(w) for part in parts], -1) + log_weights
    return log_q.gather(-1, samples[COMPONENT][..., None])[..., 0] - log_det


def refuse_own_models(has_own_models: bool) -> None:
    """Raises a ValueError where components have models of their own, and so are no one guide of a posterior."""
    if has_own_models:
        raise ValueError(_NO_POSTERIOR)

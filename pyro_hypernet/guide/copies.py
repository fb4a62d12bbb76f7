"""What of a guide goes along when it is copied, pickled, or traced by torch.jit: all of that is decided here."""

import copy
import pickle
import warnings
from typing import Any

import torch
from pyro.infer.autoguide import AutoContinuous
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.poutine.replay_messenger import ReplayMessenger
from pyro.poutine.runtime import _PYRO_STACK

from pyro_hypernet.informed.conditional import GaussianConditional
from pyro_hypernet.model.announce import forget_announcements
from pyro_hypernet.model.arguments import Arguments

# Found again when needed: a weak reference, graphs, a name in the parameter store.
_LEFT_BEHIND = {"master": None, "_weigher": None, "_densities": None, "_param_prefix": None}
_WITH_THE_MODEL = ("_uninitialised_model", "_init_loc_fn", "_knowledge")
# What a run of the model gave: copies share it, for it never changes.
_SHARED = ("_model", *_WITH_THE_MODEL, "prototype_trace", "_prototype_frames", "_cond_indep_stacks", "plates")


def pickled(guide: AutoContinuous) -> dict[str, Any]:
    """The state to pickle: without the model, as of Pyro's own guides, but where draws need it.

    Raises:
        TypeError: If it is needed and cannot be pickled.
    """
    forget_announcements(guide)
    _forget_what_holds_no_longer(guide)
    state = {**guide.__dict__, **_LEFT_BEHIND, "_model": None, "_start": _freshness(guide)}
    why = _why_its_model_is_needed(guide)
    if not why:
        return {**state, **dict.fromkeys(_WITH_THE_MODEL)}
    try:
        held = [leaf for part in guide.modules() if isinstance(part, Arguments) for leaf in part.others]
        pickle.dumps([*(state[name] for name in _WITH_THE_MODEL), *held])
    except Exception as error:
        raise TypeError(
            f"The guide's model, or one of its arguments, cannot be pickled ({error}), and draws need it: "
            f"{why}. Define it at the top of a module, or keep the guide with pyro_hypernet.save(guide, path) "
            "and read it with pyro_hypernet.load(path, model, *args)."
        ) from error
    return state


def _freshness(guide: AutoContinuous) -> tuple | None:
    """None for a guide that was trained: its parameters are no longer those that it was built with."""
    return None if guide.is_trained else ()


def _forget_what_holds_no_longer(guide: AutoContinuous) -> None:
    """A copy's rejection is taken to hold for the parameters that come with it."""
    if guide.rejection is None:
        guide.reject(None)


def _why_its_model_is_needed(guide: AutoContinuous) -> str:
    """Why draws need it: for weights given others, for rejection, or as there are none before `setup`; else ""."""
    if guide._layout is None:
        return "the guide has no parameters before setup"
    if guide.rejection is not None:
        return "the guide rejects some by its density"
    is_informed = any(isinstance(module, GaussianConditional) for module in guide.modules())
    return 'the guide has the structure "informed"' if is_informed else ""


def unpickled(guide: AutoContinuous) -> None:
    """Puts a guide together again from the state of `pickled`."""
    guide._densities = {}
    if guide._uninitialised_model is not None:
        guide._model = (InitMessenger(guide._init_loc_fn)(guide._uninitialised_model[0]),)
    if guide._start is not None:  # as fresh as the one that was copied
        guide._start = guide._fingerprint()
    if "keeper" in guide._modules:  # it holds for the parameters that came with it
        guide._modules["keeper"].fingerprint = guide._fingerprint()


def copied(guide: AutoContinuous, memo: dict[int, Any]) -> AutoContinuous:
    """A deep copy of a guide of the same model."""
    new = type(guide).__new__(type(guide))
    memo[id(guide)] = new
    _forget_what_holds_no_longer(guide)
    forget_announcements(guide)
    shared = {name: value for name, value in guide.__dict__.items() if name in _SHARED}
    own = {name: value for name, value in guide.__dict__.items() if name not in _SHARED}
    new.__dict__.update(copy.deepcopy({**own, **_LEFT_BEHIND, "_start": _freshness(guide)}, memo))
    new.__dict__.update(shared)
    unpickled(new)
    return new


def leave_rejection_out(guide: AutoContinuous) -> bool:
    """What torch.jit.trace is told of rejection, a loop of random length, which it cannot follow; always True.

    Pyro's Jit ELBOs trace a training step, with the parameters as arguments. Training ends the rejection anyway, so it
    ends here; otherwise it stays with the guide, and a warning says that the trace does not have it.
    """
    is_training = torch.is_grad_enabled() and any(
        isinstance(handler, ReplayMessenger) and handler.params is not None for handler in _PYRO_STACK
    )
    if is_training:
        guide.reject(None)
        return True
    warnings.warn(
        "torch.jit.trace cannot follow the rejection of this guide's draws: what it records keeps every draw. Call "
        "guide.reject(None) first if that is what you want, or draw without tracing.",
        stacklevel=4,
    )
    return True

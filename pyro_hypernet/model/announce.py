"""The parameters of a module, announced to Pyro under names that no other module has."""

import weakref
from collections.abc import Mapping
from functools import partial
from itertools import chain, count
from typing import Any

import pyro
import torch
from pyro.nn.module import _is_module_local_param_enabled
from pyro.poutine.runtime import _PYRO_STACK, effectful
from torch import Tensor, nn
from torch.distributions import constraints
from torch.utils.weak import WeakTensorKeyDictionary

# Every parameter that was announced in this process, under a name that depends on what else is in the store; what else
# stands there came from a file.
_announced = WeakTensorKeyDictionary()


def announce(
    named: Mapping[str, nn.Parameter], name: str, prefix: str | None = None
) -> tuple[dict[str, Tensor], str | None]:
    """Issues a `pyro.param` statement for every parameter, as SVI expects, where someone listens.

    The parameters stay their module's own: they live, are copied and die with it. In the parameter store they stand
    under a prefix that is free or theirs already, so two modules never share a value by sharing a name. Values that
    `ParamStoreDict.load` has put under the prefix are taken over, by the first module that they fit.

    Args:
        named: A dict from name to parameter, unconstrained.
        name: The prefix wanted; where it is taken, a number follows.
        prefix: The prefix of the last time, to be kept if it can be.

    Returns:
        A dict from name to the statement's value, and the prefix.
    """
    if not _PYRO_STACK:
        return dict(named), prefix
    if _is_module_local_param_enabled():
        return {key: _state_locally(f"{name}.{key}", parameter) for key, parameter in named.items()}, prefix
    if prefix is None or not _is_open(prefix, named):
        prefixes = chain([name], (f"{name}_{number}" for number in count(2)))
        prefix = next(prefix for prefix in prefixes if _is_open(prefix, named))
    return {key: _state(f"{prefix}.{key}", parameter) for key, parameter in named.items()}, prefix


def forget_announcements(module: nn.Module) -> None:
    """Removes the weak references that the parameter store leaves in parameters, which cannot be pickled."""
    for parameter in module.parameters():
        parameter.__dict__.pop("unconstrained", None)


def stored_names(params: Mapping[str, Tensor]) -> dict[str, bool]:
    """Names of those of a model's parameters that Pyro's store holds, and of each whether `announce` chose the name.

    A parameter that has two names, as in a PyroModule around a module that announces its own, counts once.
    """
    store = pyro.get_param_store()._params
    names = {id(leaf): name for name, leaf in params.items() if store.get(name) is leaf}
    return {name: store[name] in _announced for name in names.values()}


def _is_open(prefix: str, named: Mapping[str, nn.Parameter]) -> bool:
    """Whether all names under a prefix are free or ours already, or hold values for us that came from a file."""
    store = pyro.get_param_store()._params
    pairs = [(store.get(f"{prefix}.{key}"), parameter) for key, parameter in named.items()]
    if all(stored is None or stored is parameter for stored, parameter in pairs):
        return True
    return all(
        stored is not None and stored not in _announced and stored.shape == parameter.shape
        for stored, parameter in pairs
    )


def _state(full_name: str, parameter: nn.Parameter) -> Tensor:
    store = pyro.get_param_store()
    stored = store._params.get(full_name)
    if stored is not parameter:
        if stored is not None:
            with torch.no_grad():
                parameter.copy_(stored)
        # Not by `pyro.param`, which makes a copy of a parameter that is not contiguous.
        store._params[full_name] = parameter
        store._constraints[full_name] = constraints.real
        store._param_to_name[parameter] = full_name
        _announced[parameter] = True
    return pyro.param(full_name)


def _state_locally(full_name: str, parameter: nn.Parameter) -> Tensor:
    parameter.unconstrained = weakref.ref(parameter)
    statement = effectful(type="param")(partial(_return_second, parameter=parameter))
    return statement(full_name, parameter, constraint=constraints.real, name=full_name)


def _return_second(*_: Any, parameter: Tensor, **__: Any) -> Tensor:
    return parameter

"""What a model's predictions need besides its draws: learnt parameters, and the modules that the model uses."""

import dis
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any

import pyro
import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor, nn
from torch.distributions.constraints import Constraint
from torch.nn.parameter import is_lazy

from pyro_hypernet.bnn.bayesian_net import BayesianNet
from pyro_hypernet.model.vectorize import Model

# Packages whose functions hold nothing of a user's model.
_LIBRARIES = ("torch", "pyro", "pyro_hypernet")


@dataclass(frozen=True)
class ModelState:
    """The numbers of a model that are neither drawn nor data.

    Attributes:
        params: From the name of a `pyro.param` statement to its unconstrained value, for those that no module keeps.
        constraints: From the same names to their constraints.
        tensors: From "<module>:<name>" to a parameter or buffer of a module that the model uses.
        statements: From the names in `tensors` of parameters to the names under which Pyro's store knows them too.
        hidden: Those of `params` that a module keeps which cannot be seen from the model.
    """

    params: dict[str, Tensor] = field(default_factory=dict)
    constraints: dict[str, Constraint] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    statements: dict[str, str] = field(default_factory=dict)
    hidden: tuple[str, ...] = ()


def gather(model: Model, names: Mapping[str, bool]) -> ModelState:
    """Collects a model's state; its tensors are the model's own, not copies.

    Args:
        names: Of its `pyro.param` statements, and of each whether `announce` chose it.

    Raises:
        ValueError: If a network's parameters are in use, but it cannot be found from the model.
    """
    store = pyro.get_param_store()
    tensors = dict(_tensors(model))
    keys = {id(tensor): key for key, tensor in tensors.items()}
    learnt = {id(p) for net in _networks(model) for p in net.parameters() if p.requires_grad}
    if sum(names.values()) > len(learnt):
        raise ValueError(
            f"The model, {model!r}, uses a network of bayesianize that cannot be found from it, so its learnt "
            "parameters cannot be kept: use the network in the model as a variable, or make the model a PyroModule "
            "that holds it."
        )
    chosen = [name for name, is_ours in names.items() if not is_ours]
    params = {name: store._params[name] for name in chosen if name in store}
    if len(params) < len(chosen):
        warnings.warn(
            f"Parameters {sorted(set(chosen) - set(params))} of the model are no longer in Pyro's parameter store, so "
            "their values are not kept in the file.",
            stacklevel=4,
        )
    statements = {keys[id(p)]: name for name, p in params.items() if id(p) in keys}
    params = {name: p for name, p in params.items() if id(p) not in keys}
    hidden = tuple(name for name, p in params.items() if isinstance(p, nn.Parameter))
    return ModelState(params, {name: store._constraints[name] for name in params}, tensors, statements, hidden)


def restore(model: Model, state: ModelState, *, own: Mapping[str, Tensor] | None, overwrite: bool, path: Any) -> None:
    """Puts a state back, into the modules that the model uses and into Pyro's parameter store, or changes nothing.

    Args:
        state: What `gather` found.
        own: From the names of the model's `pyro.param` statements to the leaves that it made for them in an empty
            store; None where it could not be run.
        overwrite: Whether other values that the store has under these names give way.

    Raises:
        ValueError: If names or shapes do not fit the model, the store holds other values, or the model has to be run.
    """
    if state.hidden and own is None:
        raise ValueError(
            f"{path} holds parameters {list(state.hidden)} of a module that cannot be found from the model: pass the "
            "model's arguments to load, which then runs it."
        )
    found = dict(_tensors(model))
    _check_names(state, found, own or {}, path)
    store = pyro.get_param_store()
    values = state.params | {name: state.tensors[key] for key, name in state.statements.items()}
    leaves = {name: own[name] if own and name in own else value for name, value in state.params.items()}
    leaves |= {name: found[key] for key, name in state.statements.items()}
    numbers, targets = {**values, **state.tensors}, {**leaves, **found}
    _check_shapes(numbers, targets, path)
    if not overwrite:
        _refuse_to_overwrite(values, leaves, path)
    with torch.no_grad():
        for name, value in numbers.items():
            targets[name].copy_(value)
    constraints = {**store._constraints, **state.constraints}
    for name, leaf in leaves.items():
        if name in constraints:
            store._params[name] = leaf.requires_grad_(True)
            store._constraints[name] = constraints[name]
            store._param_to_name[leaf] = name


def _check_shapes(values: Mapping[str, Tensor], targets: Mapping[str, Tensor], path: Any) -> None:
    for name, value in values.items():
        if is_lazy(targets[name]):
            raise ValueError(f"Parameter {name!r} of the model has no shape yet: run the model once before load.")
        if targets[name].shape != value.shape:
            raise ValueError(
                f"Parameter {name!r} has shape {tuple(value.shape)} in {path} and {tuple(targets[name].shape)} in the "
                "model: give the model that the guide was made for."
            )


def _check_names(state: ModelState, found: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Any) -> None:
    unknown = [key for key in state.tensors if key not in found]
    if unknown:
        raise ValueError(
            f"{path} holds values of {sorted(unknown)}, in the form module:name, which the model does not have; it has "
            f"{list(found)}: give the model that the guide was made for."
        )
    missing = [key for key, tensor in found.items() if key not in state.tensors and tensor.requires_grad]
    seen = {id(tensor) for tensor in found.values()}
    missing += [name for name, leaf in own.items() if name not in state.params and id(leaf) not in seen]
    if missing:
        warnings.warn(
            f"{path} does not hold the model's parameters {missing}, which stay as they are: predictions are right "
            "only if those are the values that the guide was trained with.",
            stacklevel=5,
        )


def _refuse_to_overwrite(values: Mapping[str, Tensor], leaves: Mapping[str, Tensor], path: Any) -> None:
    store = pyro.get_param_store()._params
    taken = []
    for name, value in values.items():
        stored = store.get(name)
        if stored is not None and stored is not leaves[name]:
            same = stored.shape == value.shape and torch.equal(stored.detach().cpu(), value.detach().cpu())
            taken += [] if same else [name]
    if taken:
        raise ValueError(
            f"Pyro's parameter store already holds other values of {taken} than {path}, of another model or of later "
            "training: call pyro.clear_param_store() first, or load(..., overwrite=True) to give them up."
        )


def _tensors(model: Model) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers of all modules that a model uses, each once, but for what draws take the place of."""
    seen: set[int] = set()
    drawn = {id(tensor) for net in _networks(model) for tensor in net.replaced}
    for path, module in _modules("", model, set()):
        kept = module.state_dict(keep_vars=True)
        odd = [name for name, tensor in kept.items() if not isinstance(tensor, Tensor)]
        if odd:
            warnings.warn(f"The model's state {odd} consists of no tensors and is not kept in the file.", stacklevel=4)
        for name, tensor in kept.items():
            if isinstance(tensor, Tensor) and id(tensor) not in drawn | seen:
                seen.add(id(tensor))
                yield f"{path}:{name}", tensor


def _networks(model: Model) -> list[BayesianNet]:
    found = [part for _, module in _modules("", model, set()) for part in module.modules()]
    return [part for part in found if isinstance(part, BayesianNet)]


def _modules(path: str, value: Any, seen: set[int]) -> Iterator[tuple[str, nn.Module]]:
    """The modules that a callable can reach: itself, its variables and attributes, with the way to each."""
    if id(value) in seen or isinstance(value, (AutoGuide, type, Tensor)):
        return
    seen.add(id(value))
    if isinstance(value, nn.Module):
        yield path, value
        return
    for name, part in _parts(value):
        yield from _modules(f"{path}.{name}" if path else name, part, seen)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, partial):
        numbered = ((str(number), part) for number, part in enumerate(value.args))
        yield from [("func", value.func), *numbered, *value.keywords.items()]
    elif isinstance(value, MethodType):
        yield from [("self", value.__self__), ("func", value.__func__)]
    elif isinstance(value, FunctionType):
        if (value.__module__ or "").partition(".")[0] in _LIBRARIES:
            return
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=False)
        yield from ((name, cell.cell_contents) for name, cell in cells if _is_filled(cell))
        named = {name: value.__globals__[name] for name in _globals(value.__code__) if name in value.__globals__}
        yield from sorted(named.items())
    elif isinstance(value, (list, tuple)):
        yield from ((str(index), part) for index, part in enumerate(value) if _may_hold(part))
    elif isinstance(value, Mapping):
        yield from ((str(key), part) for key, part in value.items() if _may_hold(part))
    elif callable(value) and hasattr(value, "__dict__"):
        yield from ((key, part) for key, part in vars(value).items() if _may_hold(part))


def _may_hold(value: Any) -> bool:
    return callable(value) or isinstance(value, (list, tuple, Mapping))


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _globals(code: CodeType) -> set[str]:
    """Names of the globals that a function reads, in its inner functions too."""
    names = {step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
    return names.union(*(_globals(inner) for inner in code.co_consts if isinstance(inner, CodeType)))

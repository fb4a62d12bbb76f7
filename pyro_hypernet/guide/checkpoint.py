"""A trained guide, or a mixture, as one safetensors file: parameters, choices, layout, and the model's own state."""

import contextlib
import copy
import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyro
import safetensors
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from pyro_hypernet.guide.described import (
    describe_choice,
    describe_constraint,
    describe_layout,
    recall_choice,
    recall_constraint,
    recall_layout,
)
from pyro_hypernet.guide.disagreement import Disagreement
from pyro_hypernet.guide.guide_mixture import GuideMixture, JointGuide
from pyro_hypernet.guide.model_state import ModelState, gather, restore
from pyro_hypernet.guide.plan import Plan
from pyro_hypernet.guide.rejection import Rejection
from pyro_hypernet.informed.detect import Knowledge
from pyro_hypernet.informed.structures import STRUCTURES
from pyro_hypernet.maps.bounds import drop_bounds, is_bounded, loosen_bounds, slowness_of
from pyro_hypernet.maps.hypernets import HYPERNETS
from pyro_hypernet.model.arguments import Arguments, recall
from pyro_hypernet.model.vectorize import Model

_FORMAT = "pyro_hypernet.guide.auto_hypernet"
# Version 1 had nothing of the model, and no bounds in the map; 2 had other bounds, and the arguments in two ways.
_VERSION = 3
# Of files of mixtures, which hold the tensors of every component under names that begin so.
_MIXTURE_VERSION = 4
_COMPONENT = "component."
# Marks those whose model's own state stands with the first.
_WITHOUT_MODEL = "without_model"
# Before the names of a rejection's tensors, which are no part of the guide's own state.
_REJECTION = "rejection."
_THE_MAPS = "those of the map"
# Of a guide's plan.
_NUMBERS = ("init_scale", "num_components", "num_particles", "anneal", "rejection", "temperature")
# Likewise of the model's parameters in Pyro's store, and of the tensors of its modules.
_PARAM, _TENSOR = "model.param.", "model.tensor."
# Before the names of what `fit` adds to go on from there.
RUN = "run."
# In the place of a file's checksum while that is taken.
_NO_SUM = "0" * 64


def save(guide: AutoHypernet | GuideMixture, path: str | os.PathLike[str]) -> None:
    """Writes a guide to a file, whole or not at all.

    The file holds no code and no pickle: parameters, the names of hypernet and structure with their options, the layout
    and the versions of torch and Pyro. Of the model it holds what predictions need: the values of its `pyro.param`s,
    and the parameters and buffers of the modules that it is, or that it uses as variables or attributes; not those
    that draws take the place of.

    Args:
        guide: A guide after `setup` or `fit`.
        path: The file; its folder is made if need be, an old file is replaced.

    Raises:
        TypeError: If `guide` is no AutoHypernet or GuideMixture.
        RuntimeError: If the guide has no parameters yet.
        ValueError: If hypernet or structure is a function of the user's own with options that JSON cannot hold, or a
            parameter of the model cannot be kept.
    """
    if not isinstance(guide, JointGuide):
        raise TypeError(
            f"save writes an AutoHypernet or a GuideMixture; got {type(guide).__name__}. Draws are kept by "
            "torch.save(result.samples, path), or for ArviZ by to_arviz(model, result, *args).to_netcdf(path)."
        )
    write(Path(path), *pack(guide))


def pack(guide: AutoHypernet | GuideMixture) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a file holds of a guide: its header, plain values, and its tensors by name; errors as of `save`."""
    header, tensors = _pack_mixture(guide) if isinstance(guide, GuideMixture) else _pack(guide, _gather(guide))
    return {"format": _FORMAT, "torch": torch.__version__, "pyro": pyro.__version__, **header}, tensors


def _pack_mixture(mixture: GuideMixture) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and tensors of a mixture: those of its components, with the first its model's, or with each."""
    headers, tensors = [], {}
    for number, guide in enumerate(mixture.components):
        is_without = number > 0 and not mixture.has_own_models
        header, own = _pack(guide, ModelState() if is_without else _gather(guide))
        headers.append({**header, _WITHOUT_MODEL: True} if is_without else header)
        tensors |= {f"{_COMPONENT}{number}.{name}": tensor for name, tensor in own.items()}
    found = mixture.disagreement
    header = {
        "version": _MIXTURE_VERSION,
        "components": headers,
        "log_weights": [repr(value) for value in mixture.log_weights.tolist()],  # in words: JSON has no infinity
        "disagreement": None if found is None else [repr(found.between), repr(found.within), found.measure],
    }
    return header, tensors


def describe(guide: AutoHypernet) -> dict[str, Any]:
    """What a file says of the guide itself, in plain values; errors as of `save`."""
    return {
        "layout": describe_layout(guide.layout),
        "version": _VERSION,
        "hypernet": describe_choice(guide.plan.hypernet, HYPERNETS, "hypernet"),
        "structure": describe_choice(guide.plan.structure, STRUCTURES, "structure"),
        **{name: getattr(guide.plan, name) for name in _NUMBERS},
        "knowledge": guide.knowledge.describe() if guide.knowledge else None,
        "rejected": _describe_rejection(guide.rejection) if guide.rejection else None,
        "is_bounded": is_bounded(guide.bijection),
        "slowness": slowness_of(guide.bijection),
    }


def _pack(guide: AutoHypernet, state: ModelState) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and tensors of a guide and of its model's own state."""
    rejection = guide.rejection
    header = {
        **describe(guide),
        "model": {
            "constraints": {name: describe_constraint(constraint) for name, constraint in state.constraints.items()},
            "statements": state.statements,
            "hidden": state.hidden,
        },
    }
    of_rejection = rejection.named_buffers() if rejection else ()
    tensors = dict(guide.state_dict())
    tensors |= {_REJECTION + name.removeprefix("own."): tensor for name, tensor in of_rejection}
    tensors |= {_PARAM + name: tensor for name, tensor in state.params.items()}
    tensors |= {_TENSOR + name: tensor for name, tensor in state.tensors.items()}
    return header, tensors


def write(path: Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Writes plain values and tensors with their SHA-256, whole or not at all, onto the disk before they have a name.

    Its folder is made if need be, an old file is replaced.
    """
    # Copies: the file may not hold memory that two tensors share, such as data of which one is a view of the other.
    copied = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    data = save_tensors(copied, metadata={"pyro_hypernet": _as_json(header), "sha256": _NO_SUM})
    head, rest = _parts(data)
    digest = hashlib.sha256(head)
    digest.update(rest)
    _write(path, head.replace(_NO_SUM.encode(), digest.hexdigest().encode()), rest)


def load(
    path: str | os.PathLike[str],
    model: Model,
    *args: Any,
    hypernet: Callable[..., Any] | None = None,
    structure: Callable[..., Any] | None = None,
    device: torch.device | str | None = None,
    overwrite: bool = False,
    **kwargs: Any,
) -> AutoHypernet | GuideMixture:
    """Reads a guide back; it samples and scores without data and without a training step.

    The model's own learnt parameters come back too, into its modules and into Pyro's parameter store, so that it
    predicts as it did.

    Args:
        path: A file written by `save`.
        model: The model that the guide was made for.
        args: The model's arguments, if they are at hand: the sites are then compared now, else at the first use.
        hypernet: The user's own function, where the guide was made with one.
        structure: Likewise.
        device: Where the parameters go; the CPU by default, and for those of the model's modules where these are.
        overwrite: Whether parameters of the model may take the place of others in Pyro's parameter store that have
            their names and other values.
        kwargs: The model's keyword arguments, if they are at hand.

    Returns:
        The guide.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is cut short, not ours, needs a function that is not given, or belongs to a model with
            other sites or parameters; or the parameter store holds others.
    """
    header, tensors = read(Path(path))
    is_mixture, given = "components" in header, {"hypernet": hypernet, "structure": structure}
    guides = []
    for number, own in enumerate(header["components"] if is_mixture else [header]):
        found = _pop(tensors, f"{_COMPONENT}{number}.") if is_mixture else tensors
        has_own_model = number > 0 and _WITHOUT_MODEL not in own  # it has learnt parameters of its own
        its_model = copy.deepcopy(model) if has_own_model else model
        guides.append(_unpack(own, found, its_model, (args, kwargs), given, device, overwrite=overwrite, path=path))
    if not is_mixture:
        return guides[0]
    mixture = GuideMixture(guides, log_weights=[float(value) for value in header["log_weights"]])
    if header["disagreement"] is not None:
        between, within, measure = header["disagreement"]
        mixture.disagreement = Disagreement(float(between), float(within), measure)
    return mixture


def _unpack(
    header: dict[str, Any],
    tensors: dict[str, Tensor],
    model: Model,
    arguments: tuple[tuple, dict[str, Any]],
    given: Mapping[str, Callable[..., Any] | None],
    device: torch.device | str | None,
    *,
    overwrite: bool,
    path: Any,
) -> AutoHypernet:
    """A guide, and its model's own state put back, from what `_pack` gave; arguments as of `load`."""
    args, kwargs = arguments
    of_rejection, params, of_modules, _ = (_pop(tensors, prefix) for prefix in (_REJECTION, _PARAM, _TENSOR, RUN))
    layout = recall_layout(header["layout"])
    guide = AutoHypernet(
        model,
        plan=Plan(
            recall_choice(header["structure"], STRUCTURES, given["structure"], "structure"),
            recall_choice(header["hypernet"], HYPERNETS, given["hypernet"], "hypernet"),
            **{name: header[name] for name in _NUMBERS if name in header},
        ),
    )
    origin = tensors["_origin"]
    with torch.random.fork_rng(devices=[]):  # parameters drawn here are overwritten at once
        knowledge = None
        if header.get("knowledge"):
            named = {name.rpartition(".")[2]: tensor for name, tensor in tensors.items()}
            knowledge = Knowledge.from_description(model, layout, header["knowledge"], named)
        guide.build(layout, origin.to(device or "cpu"), knowledge)
    if not header.get("is_bounded", header["version"] > 1):
        drop_bounds(guide.bijection)
    if header.get("slowness", 1.0) == 1.0:
        loosen_bounds(guide.bijection)
    try:
        guide.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the guide that its header describes: {error}") from None
    if header.get("rejected"):
        _install_rejection(guide, header["rejected"], of_rejection, args, kwargs)
    own = _set_up(guide, model, args, kwargs) if args or kwargs else None
    if _WITHOUT_MODEL in header:
        return guide
    state = _recall_model(header.get("model"), params, of_modules, guide._origin.device)
    restore(model, state, own=own, overwrite=overwrite, path=path)
    guide._stored_names = dict.fromkeys([*state.params, *state.statements.values()], False)
    return guide


def put_back(
    guide: AutoHypernet, own: dict[str, Tensor], header: Mapping[str, Any], tensors: dict[str, Tensor], path: Path
) -> None:
    """Gives a guide that is set up, and its model, the values of a file of the same guide; only the run's are left.

    Args:
        own: The leaves of the model's `pyro.param` statements, by name.
        tensors: The file's tensors.

    Raises:
        ValueError: If they do not fit.
    """
    _, params, of_modules = (_pop(tensors, prefix) for prefix in (_REJECTION, _PARAM, _TENSOR))
    values = {name: tensors.pop(name) for name in list(tensors) if not name.startswith(RUN)}
    try:
        guide.load_state_dict(values)
    except RuntimeError as error:
        raise ValueError(f"{path} is of another guide or model: {error}") from None
    state = _recall_model(header["model"], params, of_modules, guide._origin.device)
    if guide._uninitialised_model is not None:
        restore(guide._uninitialised_model[0], state, own=own, overwrite=True, path=path)


def _recall_model(
    described: Mapping[str, Any] | None, params: dict[str, Tensor], tensors: dict[str, Tensor], device: torch.device
) -> ModelState:
    if not described:  # version 1 has nothing of the model
        return ModelState()
    return ModelState(
        params={name: value.to(device) for name, value in params.items()},
        constraints={name: recall_constraint(entry) for name, entry in described["constraints"].items()},
        tensors=tensors,
        statements=described["statements"],
        hidden=tuple(described["hidden"]),
    )


def _gather(guide: AutoHypernet) -> ModelState:
    model = guide._uninitialised_model
    if model is None:
        warnings.warn(
            "The guide came out of a pickle without its model, so the file holds nothing of the model: its own learnt "
            "parameters, if it has any, have to be kept otherwise.",
            stacklevel=3,
        )
        return ModelState()
    return gather(model[0], guide._stored_names)


def _set_up(guide: AutoHypernet, model: Model, args: tuple, kwargs: dict[str, Any]) -> dict[str, Tensor]:
    """Compares the sites; the leaves that the model makes for its `pyro.param`s where the parameter store is empty."""
    with torch.random.fork_rng(devices=[]), pyro.get_param_store().scope():
        guide.setup(*args, **kwargs)
        return guide.density(model).params(guide._origin, *args, **kwargs)


def _describe_rejection(rejection: Rejection) -> dict[str, Any]:
    """Plain values; the arguments, where they are not the map's own, or None where a file cannot hold them."""
    arguments = _THE_MAPS if rejection.is_shared else rejection.arguments.describe()
    others = sorted({type(leaf).__name__ for leaf in rejection.arguments.others})
    return {"rate_error": rejection.rate_error, "arguments": arguments, "others": others}


def _install_rejection(
    guide: AutoHypernet, described: dict[str, Any], tensors: dict[str, Tensor], args: tuple, kwargs: dict
) -> None:
    arguments = described["arguments"]
    if arguments == _THE_MAPS:
        kept = next(part for part in guide.modules() if isinstance(part, Arguments)).values()
    elif arguments is not None:
        kept = recall(arguments, tensors)
    elif args or kwargs:
        kept = args, kwargs
    else:
        raise ValueError(
            "The guide chooses among its draws by the model's density at its arguments, and the file could not hold "
            f"these, for there is a {' and a '.join(described['others'])} among them: pass them, load(path, model, "
            "*args, **kwargs), or save the guide after guide.reject(None), which keeps every draw."
        )
    guide._install(tensors["log_threshold"], tensors["log_rate"], described["rate_error"], kept)


def _update(header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Turns what version 2 says of the model's arguments into what is said now."""
    if header["version"] < _VERSION:
        header["rejected"] = header.pop("rejection", None)
    path = next((name.rpartition("argument_")[0] for name in tensors if "argument_" in name), "")
    of_map = (header.get("knowledge"), f"{path}argument_", f"{path}arguments.")
    of_rejection = (header["rejected"], f"{_REJECTION}data_", _REJECTION)
    for described, old, new in (of_map, of_rejection):
        if described and "arguments" not in described:
            args = tuple(tensors.pop(f"{old}{i}", value) for i, value in enumerate(described.pop("args")))
            kwargs = {key: tensors.pop(old + key, value) for key, value in described.pop("kwargs").items()}
            arguments = Arguments(args, kwargs)
            described["arguments"] = arguments.describe()
            tensors |= {new + name: tensor for name, tensor in arguments.named_buffers()}


def _pop(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    names = [name for name in tensors if name.startswith(prefix)]
    return {name.removeprefix(prefix): tensors.pop(name) for name in names}


def _as_json(header: Mapping[str, Any]) -> str:
    try:
        return json.dumps(header)
    except TypeError as error:
        raise ValueError(
            f"A constraint of the model's sites or parameters cannot be written to a file ({error}): use one of "
            "torch.distributions.constraints, or keep the guide by torch.save."
        ) from None


def _parts(data: bytes) -> tuple[bytes, memoryview]:
    """A file's beginning, which holds its header, and its numbers."""
    end = 8 + int.from_bytes(data[:8], "little")
    return data[:end], memoryview(data)[end:]


def _write(path: Path, *parts: bytes | memoryview) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        with contextlib.suppress(OSError):  # the name, too; not every system opens folders
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and the tensors of a file, as this release writes them.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is cut short, changed, not ours or of a later release.
    """
    data = path.read_bytes()
    try:
        tensors = load_tensors(data)
        head, rest = _parts(data)
        metadata = json.loads(head[8:]).get("__metadata__", {})
    except (safetensors.SafetensorError, ValueError) as error:
        raise ValueError(
            f"{path} is no readable checkpoint; it is cut short or not a safetensors file: {error}"
        ) from None
    if written := metadata.get("sha256"):
        digest = hashlib.sha256(head.replace(written.encode(), _NO_SUM.encode()))
        digest.update(rest)
        if digest.hexdigest() != written:
            raise ValueError(
                f"{path} is no readable checkpoint; it was changed after it was written: its SHA-256 differs."
            )
    header = json.loads(metadata.get("pyro_hypernet", "{}"))
    if header.get("format") != _FORMAT:
        raise ValueError(
            f"{path} was not written by pyro_hypernet.save: its header names {sorted(metadata) or 'nothing'}."
        )
    if header["version"] > _MIXTURE_VERSION:
        raise ValueError(
            f"{path} has format version {header['version']}; this release reads up to {_MIXTURE_VERSION}: upgrade it."
        )
    if "components" not in header:
        _update(header, tensors)
    return header, tensors

"""A report that people read: one HTML page on a posterior, and the JSON file from which it can be made again."""

import os
import platform
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_hypernet.evaluation.comparison import Comparison
from pyro_hypernet.evaluation.diagnose import diagnose
from pyro_hypernet.evaluation.draws import draws, is_guide
from pyro_hypernet.evaluation.importance import WeightedDraws, finite_log_weights, weighted_draws
from pyro_hypernet.evaluation.predict import predict
from pyro_hypernet.evaluation.verdict import Diagnosis
from pyro_hypernet.inference.fit import Fit
from pyro_hypernet.output.figures import (
    Band,
    Figure,
    band_figure,
    calibration_figure,
    check_figure,
    loo_figure,
    marginals_figure,
    trace_figure,
    weights_figure,
)
from pyro_hypernet.output.page import render
from pyro_hypernet.output.pictures import draw_all
from pyro_hypernet.output.record import FILE_NAME, Record, Table, read_record, write_record, write_whole
from pyro_hypernet.safeguards import name_arguments
from pyro_hypernet.traces import observed_nodes, predictive_nodes
from pyro_hypernet.vectorize import Model, trace_one

PAGE_NAME = "report.html"
_PACKAGES = ("pyro-hypernet", "torch", "pyro-ppl", "arviz")
_WEIGHT_DRAWS = 4000
_MODEL_CHARACTERS = 300
_SOURCES = {
    "guide": "as the guide draws them",
    "resampled": "resampled by importance weights",
    "refined": "carried from the prior by refine",
    "moved": "the guide's, moved towards the posterior",
    "nuts": "by the No-U-Turn sampler",
}


@torch.no_grad()
def report(
    model: Model,
    posterior: Any,
    *args: Any,
    out: str | os.PathLike[str],
    title: str = "A posterior and how far to trust it",
    fit: Fit | None = None,
    diagnosis: Diagnosis | None = None,
    comparison: Comparison | None = None,
    name: str = "this posterior",
    beside: Mapping[str, Any] | None = None,
    held_out: tuple | None = None,
    band: Band | None = None,
    facts: Mapping[str, str] | None = None,
    tables: Sequence[Table] = (),
    log: Sequence[str] = (),
    num_samples: int = 1000,
    **kwargs: Any,
) -> Path:
    """Writes `report.html`, one self-contained page, and `report.json`, from which `report_from` makes it again.

    The page tells what was fitted, gives the verdict in words with every check, its reading and its remedy, the
    distances from a reference, and pictures: calibration, data sampled anew, the forest of distances, marginals, the
    bound while training, importance weights, the influence of single data.

    Args:
        model: The Pyro model.
        posterior: What `infer` returned; a guide; a result of `nuts` or `refine`, or whatever else `draws` knows.
        args: The model's arguments, data included, as in training.
        out: The folder; made if need be.
        title: Of the page.
        fit: What `fit` returned: steps, seconds and the trace of the bound; None for that of `infer`.
        diagnosis: What `diagnose` returned; None for that of `infer`, or to diagnose a guide now.
        comparison: What `compare` returned, with the reference, or None.
        name: The posterior's name in the pictures.
        beside: From a name to other posteriors to show beside this one, such as the reference.
        held_out: All arguments with data that the posterior has not seen, for the calibration; None to judge it by the
            data of training, and say so.
        band: A line through input space along which to show the function.
        facts: Further lines under "What was fitted".
        tables: Further tables.
        log: What was done, line by line; none for that of `infer`.
        num_samples: Draws behind pictures and checks.
        kwargs: The model's keyword arguments.

    Returns:
        The page.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If a posterior is of no known kind.
        ValueError: If samples do not fit the model, or `name` is also a name in `beside`.

    Example:
        >>> import tempfile, pyro, pyro.distributions as dist
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> exact = {"mean": 0.75 + 0.5 * torch.randn(200)}
        >>> report(model, exact, torch.ones(3), out=tempfile.mkdtemp()).name
        'report.html'
    """
    if name in (beside or {}):
        raise ValueError(f"name must differ from the names in beside; got {name!r} in both.")
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"out must be a folder; {out} is a file.")
    guide = getattr(posterior, "guide", None) or posterior
    fit = getattr(posterior, "fit", None) if fit is None else fit
    diagnosis = getattr(posterior, "diagnosis", None) if diagnosis is None else diagnosis
    if diagnosis is None and is_guide(guide):
        diagnosis = diagnose(model, guide, *args, fit=fit, **kwargs)
    judge = posterior if hasattr(posterior, "verdict") else diagnosis
    named = {name: posterior, **(beside or {})}
    samples = {key: draws(value, *args, num_samples=num_samples, **kwargs) for key, value in named.items()}
    figures: dict[str, Figure] = {"marginals": marginals_figure(samples)}
    drawn = None
    if diagnosis is not None and is_guide(guide):
        drawn = weighted_draws(model, guide, *args, num_samples=_WEIGHT_DRAWS, what="a report", **kwargs)
        figures["weights"] = weights_figure(finite_log_weights(drawn.log_weights), diagnosis.khat)
    figures |= _data_figures(model, samples, name, args, kwargs, held_out)
    if "check" in figures:
        figures["loo"] = _loo(model, posterior, samples[name], drawn, args, kwargs)
    if fit is not None:
        figures["trace"] = trace_figure(fit.losses)
    if band is not None:
        figures["band"] = band_figure(model, samples, band, num_samples=num_samples)
    known = {**_facts(model, posterior, guide, fit, diagnosis), **_data_facts(model, args, kwargs), **(facts or {})}
    record = Record(
        title=title,
        created=datetime.now().astimezone().strftime("%d %B %Y, %H:%M %Z"),
        facts=tuple({**known, "Versions": _versions()}.items()),
        verdict="" if judge is None else judge.verdict,
        because="" if judge is None else judge.because,
        diagnosis=diagnosis,
        comparison=comparison,
        tables=tuple(tables),
        figures=figures,
        log=tuple(log or getattr(posterior, "log", ())),
    )
    write_record(record, out)
    return _write_page(record, out)


def report_from(folder: str | os.PathLike[str]) -> Path:
    """Makes `report.html` again from the `report.json` in a folder.

    Args:
        folder: A folder that `report`, `pyro-hypernet fit` or `pyro-hypernet demo` wrote.

    Returns:
        The page.

    Raises:
        FileNotFoundError: If there is no such folder, or no such file in it.
        NotADirectoryError: If it is a file.
        ValueError: If the file is damaged, not ours, or of another version.
        ImportError: If matplotlib is not installed.
    """
    return _write_page(read_record(Path(folder)), Path(folder))


def _write_page(record: Record, folder: Path) -> Path:
    pictures = draw_all(record.figures, record.comparison)
    files = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != PAGE_NAME)
    write_whole(folder / PAGE_NAME, render(record, pictures, files))
    return folder / PAGE_NAME


def _data_figures(
    model: Model, samples: Mapping[str, Any], name: str, args: tuple, kwargs: dict, held_out: tuple | None
) -> dict[str, Figure]:
    """The check on data sampled anew and the calibration, of the first observed site."""
    own = samples[name]
    observed = _observed(model, own, args, kwargs)
    if observed is None:
        return {}
    site, y = observed
    anew = predict(poutine.uncondition(model), own, *args, num_samples=_size(own), return_sites=[site], **kwargs)[site]
    figures = {"check": check_figure(anew, y, site)}
    judged, given = (args, kwargs) if held_out is None else (held_out, {})
    seen = _observed(model, own, judged, given)
    if seen is None or seen[0] != site:
        raise ValueError(f"held_out must give data to site {site!r}, as the arguments of training do.")
    replicated = {
        key: predict(poutine.uncondition(model), one, *judged, num_samples=_size(one), return_sites=[site], **given)[
            site
        ]
        for key, one in samples.items()
    }
    figures["calibration"] = calibration_figure(replicated, seen[1], held_out=held_out is not None)
    return figures


def _loo(
    model: Model, posterior: Any, own: dict[str, Tensor], drawn: WeightedDraws | None, args: tuple, kwargs: dict
) -> Figure:
    """Single data left out: by weights where the draws are a guide's, resampled or not; else as the posterior's."""
    source = getattr(posterior, "source", "guide" if is_guide(posterior) else "posterior")
    if source in ("guide", "resampled") and drawn is not None:
        return loo_figure(model, drawn.samples, args, kwargs, log_weights=drawn.log_weights)
    return loo_figure(model, own, args, kwargs, source="moved" if source in ("guide", "moved") else "posterior")


def _observed(model: Model, samples: Mapping[str, Tensor], args: tuple, kwargs: dict) -> tuple[str, Tensor] | None:
    """Name and data of the first observed site that can be sampled anew."""
    trace = trace_one(model, {key: value[0] for key, value in samples.items()}, args, kwargs)
    anew = predictive_nodes(trace, samples)
    for site, node in observed_nodes(trace, samples).items():
        if site in anew and node["value"].numel():
            return site, node["value"]
    return None


def _facts(model: Model, posterior: Any, guide: Any, fit: Fit | None, diagnosis: Diagnosis | None) -> dict[str, str]:
    described = guide.describe() if hasattr(guide, "describe") else type(guide).__name__
    spelt = repr(model) if not hasattr(model, "__name__") else model.__name__
    facts = {"Posterior": described, "Model": spelt[:_MODEL_CHARACTERS]}
    if fit is not None:
        skipped = f", {fit.num_skipped} skipped" if fit.num_skipped else ""
        facts["Training"] = f"{fit.num_steps} steps in {fit.seconds:.1f} s ({fit.stopped_because}{skipped})"
    if diagnosis is not None:
        facts["Diagnosis"] = (
            f"ELBO {diagnosis.elbo:.2f} ± {diagnosis.elbo_error:.2f} nats, k-hat {diagnosis.khat:.2f}, effective "
            f"sample size {diagnosis.ess:.0f} of {diagnosis.num_draws} draws, in {diagnosis.seconds:.1f} s"
        )
    if hasattr(posterior, "source"):
        facts["Draws"] = f"{_size(posterior.samples)}, {_SOURCES.get(posterior.source, posterior.source)}"
    if hasattr(posterior, "log_evidence"):
        facts["Log evidence"] = f"{posterior.log_evidence:.2f} ± {posterior.log_evidence_error:.2f} nats"
    if hasattr(posterior, "max_function_rhat"):
        facts["Chains"] = (
            f"{len(posterior.divergences)}; worst R-hat in function space {posterior.max_function_rhat:.3f}; "
            f"{sum(posterior.divergences)} divergent transitions"
        )
    if hasattr(posterior, "seconds"):
        facts["Time in all"] = f"{posterior.seconds:.1f} s"
    return facts


def _data_facts(model: Model, args: tuple, kwargs: dict) -> dict[str, str]:
    arguments = name_arguments(model, args, kwargs)
    data = [f"{name}: {_shape(value)}" for name, value in arguments.items() if isinstance(value, Tensor)]
    return {"Data": "; ".join(data)} if data else {}


def _versions() -> str:
    found = [f"Python {platform.python_version()}"]
    for package in _PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} of a source tree")
    return ", ".join(found)


def _shape(value: Tensor) -> str:
    return f"{' × '.join(map(str, value.shape)) or 'one number'}, {str(value.dtype).removeprefix('torch.')}"


def _size(samples: Mapping[str, Tensor]) -> int:
    return next(iter(samples.values())).shape[0]


__all__ = ["FILE_NAME", "PAGE_NAME", "Band", "Table", "report", "report_from"]

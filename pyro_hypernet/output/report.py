"""A report that people read: what there is to say of a posterior, gathered for the page."""

import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_hypernet.evaluation.compare import NOISE_FLOOR, Comparison
from pyro_hypernet.evaluation.diagnose import examine
from pyro_hypernet.evaluation.draws import draws, is_guide
from pyro_hypernet.evaluation.importance import WeightedDraws, bind_to_weigh, draw_weighted, finite_log_weights
from pyro_hypernet.evaluation.loo import leave_out
from pyro_hypernet.evaluation.predict import predict_at
from pyro_hypernet.evaluation.verdict import Diagnosis
from pyro_hypernet.model.traces import observed_nodes, pointwise_log_prob, predictive_nodes
from pyro_hypernet.model.vectorize import Model
from pyro_hypernet.output import pictures
from pyro_hypernet.output.page import Page, Table, report_from, write_report
from pyro_hypernet.output.pictures import Band, Picture, Show
from pyro_hypernet.target import Bound
from pyro_hypernet.train.fit import Fit

__all__ = ["Band", "Page", "Show", "Table", "report", "report_from"]

_PACKAGES = ("pyro-hypernet", "torch", "pyro-ppl", "arviz")
_WEIGHT_DRAWS, _MOST_LEFT_OUT, _NUM_FIGURES = 4000, 400, 3
_SOURCES = {
    "guide": "as the guide draws them",
    "resampled": "resampled by importance weights",
    "refined": "carried from the prior by refine",
    "moved": "the guide's, moved towards the posterior",
    "nuts": "by the No-U-Turn sampler",
}
_COMPARISON_NOTE = (
    "W1/sd: Wasserstein distance of the marginals in sds of the reference; sd ratio: below 1 is too narrow; MMD²: "
    "maximum mean discrepancy of the joint values; TV: total variation of class probabilities. The noise floor is one "
    "half of the reference against the other: below it nothing can be told apart."
)


def report(
    model: Model,
    posterior: Any,
    *args: Any,
    out: str | os.PathLike[str],
    fit: Fit | None = None,
    diagnosis: Diagnosis | None = None,
    comparison: Comparison | None = None,
    page: Page | None = None,
    show: Show | None = None,
    **kwargs: Any,
) -> Path:
    """Writes `report.html`, one self-contained page, and `report.json`, from which `report_from` makes it again.

    The page gives the verdict in words, three figures, and pictures of the function and its calibration. Folded below
    are every check with its reading and its remedy, what was fitted, the distances from a reference, and more pictures:
    data sampled anew, the forest of distances, marginals, the bound while training, importance weights, the influence
    of single data.

    Args:
        model: The Pyro model.
        posterior: What `infer` returned; a guide; a result of `nuts` or `refine`, or whatever else `draws` knows.
        args: The model's arguments, data included, as in training.
        out: The folder; made if need be.
        fit: What `fit` returned: steps, seconds and the trace of the bound; None for that of `infer`.
        diagnosis: What `diagnose` returned; None for that of `infer`, or to diagnose a guide now.
        comparison: What `compare` returned, with the reference, or None.
        page: Title, and further figures, facts, tables and lines of the log, as `Page(title="Rates")`.
        show: What the pictures show: other posteriors beside this one, held-out data, a line through input space, as
            `Show(held_out=(x_test, y_test))`.
        kwargs: The model's keyword arguments.

    Returns:
        The page.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If a posterior is of no known kind.
        ValueError: If samples do not fit the model, or held-out arguments hold no data.

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
    page, show = page or Page(), show or Show()
    if Path(out).exists() and not Path(out).is_dir():
        raise ValueError(f"out must be a folder; {out} is a file.")
    style = pictures.style()  # an error without matplotlib, before any work
    with torch.no_grad():
        subject = _subject(Bound(model, args, kwargs), posterior, show, fit, diagnosis)
        with style:
            shown = dict(_pictures(subject, comparison, show))
        diagnosis = subject.diagnosis
        judge, checks = subject.judge, () if diagnosis is None else diagnosis.checks
        content = {
            "title": page.title,
            "created": datetime.now().astimezone().strftime("%d %B %Y, %H:%M %Z"),
            "verdict": "" if judge is None else judge.verdict,
            "because": "" if judge is None else judge.because,
            "verdict_on_guide": "" if diagnosis is None else diagnosis.verdict,
            "checks": [{k: getattr(check, k) for k in ("name", "level", "reading", "remedy")} for check in checks],
            "facts": list({**_facts(subject), **(page.facts or {}), "Versions": _versions()}.items()),
            "tables": [asdict(table) for table in (*page.tables, *_comparison_tables(comparison))],
            "figures": [
                dict(zip(("label", "value", "note"), figure, strict=True))
                for figure in [*page.figures, *_figures(subject, comparison, shown)][:_NUM_FIGURES]
            ],
            "pictures": shown,
            "log": list(page.log or getattr(posterior, "log", ())),
        }
    return write_report(content, Path(out))


@dataclass(frozen=True)
class _Subject:
    """What a report is about: a model with its arguments, a posterior, and draws of all posteriors, its own first."""

    bound: Bound
    posterior: Any
    guide: Any
    samples: dict[str, dict[str, Tensor]]
    fit: Fit | None
    diagnosis: Diagnosis | None

    @property
    def own(self) -> dict[str, Tensor]:
        return next(iter(self.samples.values()))

    @property
    def judge(self) -> Any:
        """Who has the verdict: what `infer` returned, or else a diagnosis; None where nobody has."""
        return self.posterior if hasattr(self.posterior, "verdict") else self.diagnosis

    def observed(self, bound: Bound) -> tuple[str, Tensor] | None:
        """Name and data of the first observed site that can be sampled anew."""
        trace = bound.trace_first(self.own)
        anew, found = predictive_nodes(trace, self.own), observed_nodes(trace, self.own)
        return next(((s, n["value"]) for s, n in found.items() if s in anew and n["value"].numel()), None)


def _subject(bound: Bound, posterior: Any, show: Show, fit: Fit | None, diagnosis: Diagnosis | None) -> _Subject:
    guide = getattr(posterior, "guide", None) or posterior
    fit = getattr(posterior, "fit", None) if fit is None else fit
    diagnosis = getattr(posterior, "diagnosis", None) if diagnosis is None else diagnosis
    if diagnosis is None and is_guide(guide):
        diagnosis = examine(bound.model, guide, bound.args, bound.kwargs, fit=fit).diagnosis
    named, options = {show.name: posterior, **(show.beside or {})}, {"num_samples": show.num_samples, **bound.kwargs}
    samples = {name: draws(value, *bound.args, **options) for name, value in named.items()}
    return _Subject(bound, posterior, guide, samples, fit, diagnosis)


def _sampled(site: str, bound: Bound, samples: Mapping[str, Tensor]) -> Tensor:
    """A site, sampled anew if it is observed, one for each draw."""
    return predict_at(bound.anew(), samples, return_sites=[site])[site]


def _pictures(subject: _Subject, comparison: Comparison | None, show: Show) -> Iterator[tuple[str, Picture]]:
    """All that can be drawn, by kind, in the order in which to read it."""
    compared = () if comparison is None else comparison.names
    names = dict.fromkeys(name for name in (*subject.samples, *compared) if name != NOISE_FLOOR)
    colors = {name: f"C{order % 10}" for order, name in enumerate(names)}
    bound, band = subject.bound, show.band
    if band is not None:
        along = Bound(bound.model, band.args, {})
        yield "band", pictures.draw_band(_of_all(subject, band.site, along), band, colors)
    observed = subject.observed(bound)
    if observed is not None:
        yield "calibration", _calibration(subject, observed[0], show.held_out, colors)
        yield "check", pictures.draw_check(_sampled(observed[0], bound, subject.own), observed[1], observed[0])
    if comparison is not None:
        yield "forest", pictures.draw_forest(comparison, colors)
    yield "marginals", pictures.draw_marginals(subject.samples, colors)
    if subject.fit is not None:
        yield "trace", pictures.draw_trace(subject.fit.losses)
    weighted = _weighted(subject)
    if weighted is not None and subject.diagnosis is not None:
        yield "weights", pictures.draw_weights(finite_log_weights(weighted.log_weights), subject.diagnosis.khat)
    if observed is not None:
        yield "loo", _loo(subject, weighted)


def _of_all(subject: _Subject, site: str, bound: Bound) -> dict[str, Tensor]:
    return {name: _sampled(site, bound, samples) for name, samples in subject.samples.items()}


def _calibration(subject: _Subject, site: str, held_out: tuple | None, colors: Mapping[str, str]) -> Picture:
    bound = subject.bound if held_out is None else Bound(subject.bound.model, held_out, {})
    judged = subject.observed(bound)
    if judged is None or judged[0] != site:
        raise ValueError(f"held_out must give data to site {site!r}, as the arguments of training do.")
    replicated = _of_all(subject, site, bound)
    return pictures.draw_calibration(replicated, judged[1], colors, held_out=held_out is not None)


def _weighted(subject: _Subject) -> WeightedDraws | None:
    """Draws of a guide that was diagnosed, so has a density, with their weights."""
    if subject.diagnosis is None or not is_guide(subject.guide):
        return None
    bound = subject.bound
    target = bind_to_weigh(bound.model, subject.guide, bound.args, bound.kwargs)
    return draw_weighted(target, subject.guide, num_samples=_WEIGHT_DRAWS, what="a report")


def _loo(subject: _Subject, weighted: WeightedDraws | None) -> Picture:
    """The first 400 data left out: by weights where the draws are a guide's, resampled or not; else as the posterior's.

    Source: Vehtari, Gelman and Gabry 2017, section 2; with weights Magnusson et al. 2019, arXiv 1904.10679, equation 6.
    """
    source = getattr(subject.posterior, "source", "guide" if is_guide(subject.posterior) else "posterior")
    is_weighted = source in ("guide", "resampled") and weighted is not None
    samples = weighted.samples if is_weighted else subject.own

    def collect(trace: Trace) -> Tensor:
        nodes = observed_nodes(trace, samples).values()
        return torch.cat([pointwise_log_prob(node).flatten() for node in nodes])[:_MOST_LEFT_OUT]

    likelihood = subject.bound.map(samples, collect).T
    if is_weighted:
        return pictures.draw_loo(*leave_out(likelihood, finite_log_weights(weighted.log_weights)), "guide")
    return pictures.draw_loo(*leave_out(likelihood), "moved" if source in ("guide", "moved") else "posterior")


def _figures(
    subject: _Subject, comparison: Comparison | None, shown: Mapping[str, Picture]
) -> Iterator[tuple[str, str, str]]:
    """Label, value and note of what decides, the most telling first."""
    own, posterior = next(iter(subject.samples)), subject.posterior
    if comparison is not None and own in comparison.names:
        distance, floor = (comparison.row(name)["w1_over_sd"] for name in (own, NOISE_FLOOR))
        yield "Distance from the reference", f"{distance:.2f} sd", f"halves of the reference are {floor:.2f} apart"
    if "calibration" in shown:
        yield tuple(shown["calibration"][key] for key in ("title", "value", "what"))
    if subject.diagnosis is not None:
        yield "k-hat of the guide", f"{subject.diagnosis.khat:.2f}", "below 0.5 good; above 0.7 it misses something"
    if hasattr(posterior, "max_function_rhat"):
        yield "R-hat", f"{posterior.max_function_rhat:.2f}", "the worst in function space; at 1 chains agree"
    if "loo" in shown:
        yield "Log density of a datum", shown["loo"]["mean"], "left out, given the others; in nats"


def _comparison_tables(comparison: Comparison | None) -> Iterator[Table]:
    cells = [] if comparison is None else comparison.tables(intervals=True)
    for number, (headings, *rows) in enumerate(cells):
        place, note = (headings[0], "") if number else ("in function space", _COMPARISON_NOTE)
        if note and comparison.level:
            note += f" In brackets: {100 * comparison.level:.0f} % bootstrap intervals."
        yield Table(f"Distance from the reference, {place}", ("", *headings[1:]), tuple(rows), note)


def _facts(subject: _Subject) -> dict[str, str]:
    """What was fitted, to what, by what, as far as that is known."""
    posterior, guide, fit, diagnosis = subject.posterior, subject.guide, subject.fit, subject.diagnosis
    described = guide.describe() if hasattr(guide, "describe") else type(guide).__name__
    model = subject.bound.model
    facts = {"Posterior": described, "Model": getattr(model, "__name__", repr(model))[:300]}
    if fit is not None:
        skipped = f", {fit.num_skipped} skipped" if fit.num_skipped else ""
        facts["Training"] = f"{fit.num_steps} steps in {fit.seconds:.1f} s ({fit.stopped_because}{skipped})"
    if diagnosis is not None:
        facts["Diagnosis"] = (
            f"ELBO {diagnosis.elbo:.2f} ± {diagnosis.elbo_error:.2f} nats, k-hat {diagnosis.khat:.2f}, effective "
            f"sample size {diagnosis.ess:.0f} of {diagnosis.num_draws} draws, in {diagnosis.seconds:.1f} s"
        )
    if hasattr(posterior, "source"):
        facts["Draws"] = (
            f"{len(next(iter(posterior.samples.values())))}, {_SOURCES.get(posterior.source, posterior.source)}"
        )
    if hasattr(posterior, "log_evidence"):
        facts["Log evidence"] = f"{posterior.log_evidence:.2f} ± {posterior.log_evidence_error:.2f} nats"
    if hasattr(posterior, "divergences"):  # of chains alone: `refine` has an R-hat of its populations
        facts["Chains"] = (
            f"{len(posterior.divergences)}; worst R-hat in function space {posterior.max_function_rhat:.3f}; "
            f"{sum(posterior.divergences)} divergent transitions"
        )
    if hasattr(posterior, "seconds"):
        facts["Time in all"] = f"{posterior.seconds:.1f} s"
    data = [f"{name}: {_shape(value)}" for name, value in subject.bound.arguments.items() if isinstance(value, Tensor)]
    return facts | ({"Data": "; ".join(data)} if data else {})


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

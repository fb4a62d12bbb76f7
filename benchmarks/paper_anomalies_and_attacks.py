"""Strange images, errors and adversarial images told from the rest by draws of a network's logits.

    python benchmarks/paper_anomalies_and_attacks.py --data FOLDER [--quick] [--seeds 2]

Networks 784-100-100-10 with ReLU (the paper: 3 × 256 and 2 × 800, all images) on 5 000 MNIST images of nine digits; one
digit is left out, another for every seed, and is one of the strange kinds. Pixels in [0, 1], minibatches of 128, steps
chosen for about half a minute of CPU at most: see `STEPS`, of each network or guide. 50 draws for scores, 3 of the
ensemble. Strange images, 2 000 each: uniform noise; Normal(.5, 1) noise, clipped; notMNIST; Fashion-MNIST; the middle
28 by 28 pixels of CIFAR-10 (of lossy copies), grey; and the left-out digit, as many as the test part has. Beside them
2 000 test images of the nine digits. Scores are `pyro_hypernet.evaluation.scores.SCORES`, of one network those that
need no draws. AUROC in %, of strange against usual and of wrong against right predictions.

Attacks: `pyro_hypernet.evaluation.attacks`, through the mean prediction over 20 draws with the true label, at 500 test
images, PGD at 200 with ten steps; predictions by 20 other draws (of an ensemble, by its networks themselves). AUROC of
attacked against clean images. One thread, two slow cores shared with others; seconds are CPU seconds of training alone.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from class_scores import class_scores
from paper_methods import METHODS, Dropout, Method, options_of
from PIL import Image
from timing import cpu_seconds, median, run_cells, spread, table
from torch import Tensor, nn

from pyro_hypernet.evaluation.attacks import fgsm, pgd
from pyro_hypernet.evaluation.scores import SCORES, told_apart

STEPS = {
    "one network, Adam": 1200,
    "dropout": 4000,
    "ensemble of 3": 1200,
    "mean field, all weights": 2000,
    "ours, weight norm": 2000,
    "ours, mixture of 3": 1200,
}
FGSM_SIZES, PGD_SIZES = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3), (0.02, 0.05, 0.1)
NEED_NO_DRAWS = ("variation_ratio", "entropy", "expected_logit")


class Images:
    """MNIST of nine digits, numbered anew, and strange images, pixels in [0, 1]."""

    def __init__(self, folder: Path, left_out: int, size: int, count: int) -> None:
        files = {name: np.load(folder / f"{name}.npz") for name in ("mnist", "fashion_mnist", "notmnist_small")}
        mnist = files["mnist"]
        self.train = _nine(mnist["x_train"], mnist["y_train"], left_out, size)
        self.test = _nine(mnist["x_test"], mnist["y_test"], left_out, count)
        like = self.test[0]
        self.strange = {
            "uniform": torch.rand_like(like),
            "normal": (0.5 + torch.randn_like(like)).clamp(0, 1),
            "notMNIST": _pixels(files["notmnist_small"]["x_test"][:count]),
            "Fashion": _pixels(files["fashion_mnist"]["x_test"][:count]),
            "CIFAR grey": _cifar(folder / "cifar10_jpeg75.npz", count),
            "left-out digit": _pixels(mnist["x_test"][mnist["y_test"] == left_out][:count]),
        }


def _pixels(images: np.ndarray) -> Tensor:
    return torch.tensor(images, dtype=torch.float32).flatten(1) / 255


def _nine(images: np.ndarray, labels: np.ndarray, left_out: int, count: int) -> tuple[Tensor, Tensor]:
    kept = np.flatnonzero(labels != left_out)[:count]
    y = torch.tensor(labels[kept]).long()
    return _pixels(images[kept]), y - (y > left_out).long()


def _cifar(path: Path, count: int) -> Tensor:
    """The middles of the first test images."""
    file, images = np.load(path), []
    header, offset, first = file["header"].tobytes(), file["offset"], int(file["n_train"])
    for start, end in zip(offset[first : first + count], offset[first + 1 : first + count + 1], strict=True):
        image = Image.open(io.BytesIO(header + file["scan"][start:end].tobytes())).convert("L")
        images.append(np.asarray(image)[2:30, 2:30])
    return _pixels(np.stack(images))


def network(rate: float) -> nn.Sequential:
    hidden = [(784, 100), (100, 100)]
    layers = [layer for sizes in hidden for layer in (nn.Linear(*sizes), nn.ReLU(), Dropout(rate))]
    return nn.Sequential(*layers, nn.Linear(100, 9))


@torch.no_grad()
def by_scores(method: Method, data: Images) -> dict[str, Any]:
    """How well images are classified, and what is told from them."""
    x, y = data.test
    logits = method.logits(50)
    usual = logits(x)
    mean = usual.softmax(-1).mean(0)
    is_wrong = mean.argmax(-1) != y
    found: dict[str, Any] = {}
    strange = {kind: logits(images) for kind, images in data.strange.items()}
    for name, score in SCORES.items():
        of_usual = score(usual)
        rows = {kind: told_apart(of_usual, score(values)) for kind, values in strange.items()}
        rows["errors"] = told_apart(of_usual[~is_wrong], of_usual[is_wrong])
        found[name] = rows
    return {**class_scores(mean, y), "scores": found}


def under_attack(method: Method, data: Images, count: int) -> dict[str, dict]:
    """Accuracy at attacked images by other draws, and how well these are told from clean ones."""
    attacks = {"FGSM": (fgsm, FGSM_SIZES, count), "PGD": (pgd, PGD_SIZES, 2 * count // 5)}
    attacked, others, found = method.logits(20), method.logits(20), {}
    for name, (attack, sizes, number) in attacks.items():
        x, y = (part[:number] for part in data.test)
        images = attack(attacked, x, y, sizes, clip=(0, 1))
        with torch.no_grad():
            clean = others(x)
            for size, at in zip(sizes, images, strict=True):
                f = others(at)
                accuracy = 100 * float((f.softmax(-1).mean(0).argmax(-1) == y).double().mean())
                auroc = {key: told_apart(score(clean), score(f))["auroc"] for key, score in SCORES.items()}
                found[f"{name} {size}"] = {"accuracy": accuracy, **auroc}
    return found


def report(records: list[dict]) -> str:
    """Three tables: of accuracy, of scores, of attacks."""
    methods = list(dict.fromkeys(record["method"] for record in records))
    by_method = {method: [record for record in records if record["method"] == method] for method in methods}
    keys = {"accuracy": 2, "nll": 3, "ece": 4, "seconds": 0}
    rows = [
        [method, len(mine), *(spread([r[key] for r in mine], digits) for key, digits in keys.items())]
        for method, mine in by_method.items()
    ]
    accuracy = table(["", "seeds", "accuracy %", "NLL", "ECE", "CPU seconds"], rows)

    def cells(score: str, find: Any) -> list[str]:
        return [
            "–" if "one" in method and score not in NEED_NO_DRAWS else f"{100 * median(list(map(find, mine))):.1f}"
            for method, mine in by_method.items()
        ]

    told = [
        [kind, score, *cells(score, lambda r, kind=kind, score=score: r["scores"][score][kind]["auroc"])]
        for kind in records[0]["scores"]["entropy"]
        for score in SCORES
    ]
    attacks, under, adversarial = records[0]["attacks"], [], []
    for at in attacks:
        under.append(
            [at, *(f"{median([r['attacks'][at]['accuracy'] for r in mine]):.1f}" for mine in by_method.values())]
        )
        for score in SCORES:
            adversarial.append([at, score, *cells(score, lambda r, at=at, score=score: r["attacks"][at][score])])
    parts = [__doc__, f"Median [least, greatest] of the seeds.\n\n{accuracy}"]
    parts.append(f"Strange images and errors, AUROC in %, medians:\n\n{table(['', 'score', *methods], told)}")
    parts.append(f"Accuracy under attack in %, medians:\n\n{table(['attack, size', *methods], under)}")
    heading = ["attack, size", "score", *methods]
    parts.append(f"Attacked images told from clean ones, AUROC in %, medians:\n\n{table(heading, adversarial)}")
    return "\n\n".join(parts)


def main() -> None:
    options = options_of(__doc__, seeds=2, quick="one seed, 1 000 images, 100 steps", data=True)
    size, count = (1000, 300) if options.quick else (5000, 2000)

    def run(method: str, seed: int, left_out: int) -> dict[str, Any]:
        data = Images(Path(options.data), left_out, size, count)
        start, made = cpu_seconds(), METHODS[method](network)
        made.train(*data.train, 100 if options.quick else STEPS[method])
        seconds = cpu_seconds() - start
        return {**by_scores(made, data), "attacks": under_attack(made, data, count // 4), "seconds": seconds}

    seeds = range(1 if options.quick else options.seeds)
    cells = [{"method": method, "seed": seed, "left_out": (9 + 4 * seed) % 10} for seed in seeds for method in METHODS]
    run_cells("paper_anomalies_and_attacks", cells, run, report, quick=options.quick)


if __name__ == "__main__":
    main()

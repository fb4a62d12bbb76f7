"""The sampler by itself: its trees, its adaptation, and draws from Gaussians that are known."""

import numpy as np
import pytest

from pyro_hypernet.sample.no_u_turn import _Sampler, _step_sizes, _Tree, _turns, _window_ends, run_together
from tests.seeds import seed

OPTIONS = {"num_samples": 500, "warmup_steps": 300, "target_accept_prob": 0.8, "max_tree_depth": 10}


def gaussian(mean, precision):
    def evaluate(points):
        pulled = (points - mean) @ precision
        return -((points - mean) * pulled).sum(-1) / 2, -pulled

    return evaluate


def nothing():
    pass


def test_moments_of_a_correlated_gaussian_of_unequal_scales():
    """Ten numbers within five standard errors of 2 000 draws at half efficiency: by chance once in 10^5 runs."""
    rng = np.random.default_rng(seed(0))
    factor = rng.standard_normal((5, 5)) * [0.1, 1, 10, 1, 1]
    covariance, mean = factor.T @ factor + 0.01 * np.eye(5), np.arange(5.0)
    evaluate = gaussian(mean, np.linalg.inv(covariance))
    chains = run_together(evaluate, rng.standard_normal((4, 5)), range(4), nothing, **OPTIONS)
    draws = np.concatenate([chain.draws for chain in chains])
    sd = np.sqrt(covariance.diagonal())
    assert np.abs((draws.mean(0) - mean) / sd).max() < 5 / 1000**0.5
    assert np.abs(draws.std(0) / sd - 1).max() < 5 / 1000**0.5
    assert not any(chain.diverging.any() for chain in chains)
    assert all(chain.acceptance > 0.9 for chain in chains)


def test_a_chain_does_not_depend_on_those_beside_it():
    evaluate = gaussian(np.zeros(3), np.diag([1.0, 4.0, 9.0]))
    starts = np.random.default_rng(seed(1)).standard_normal((3, 3))
    short = {**OPTIONS, "num_samples": 20, "warmup_steps": 30}
    together = run_together(evaluate, starts, [5, 6, 7], nothing, **short)
    for number in range(3):
        (alone,) = run_together(evaluate, starts[number : number + 1], [5 + number], nothing, **short)
        np.testing.assert_allclose(alone.draws, together[number].draws, rtol=1e-9, atol=1e-9)
        assert alone.num_gradients == together[number].num_gradients


@pytest.mark.parametrize("depth", range(6))
def test_a_tree_turns_where_any_of_its_subtrees_does(depth):
    """Against all subtrees spelt out, over random momenta with a drift that makes turns neither rare nor certain."""
    rng = np.random.default_rng(seed(depth))
    outcomes = set()
    for _ in range(200):
        momenta = rng.standard_normal((2**depth, 4)) + rng.uniform(0, 2)
        tree = _Tree(depth, 4)
        for momentum in momenta:
            tree.add((momentum, momentum, momentum), 0.0, 0.0, 0.5)
            if tree.turns:
                break
        blocks = [momenta[i : i + 2**k] for k in range(1, depth + 1) for i in range(0, 2**depth, 2**k)]
        expected = any(_turns(block[0], block[-1], block.sum(0)) for block in blocks)
        assert tree.turns == expected
        outcomes.add(expected)
        if not expected:
            np.testing.assert_allclose(tree.total, momenta.sum(0), rtol=1e-12)
            assert tree.log_weight == pytest.approx(depth * np.log(2))
    assert outcomes == ({False} if depth == 0 else {False, True})


def test_a_leaf_is_proposed_by_its_weight():
    """8 000 trees of two leaves with weights 1 and 3: four standard errors are .02."""
    rng = np.random.default_rng(seed(0))
    chosen = []
    for _ in range(8000):
        tree = _Tree(1, 1)
        for value, log_weight in ((0.0, 0.0), (1.0, np.log(3.0))):
            tree.add((np.array([value]), np.ones(1), np.zeros(1)), value, log_weight, rng.random())
        chosen.append(tree.proposal[2])
    assert np.mean(chosen) == pytest.approx(0.75, abs=0.02)


def test_windows_are_stans():
    assert _window_ends(1000) == [75, 100, 150, 250, 450, 950]
    assert _window_ends(19) == []
    ends = _window_ends(100)
    assert ends == [15, 90]


def test_the_step_size_reaches_its_target():
    """Where a step of size s is accepted with probability exp(−s), the target .8 asks for s = .223."""
    adaptation, log_size = _step_sizes(1.0), 0.0
    for _ in range(2000):
        adaptation.step(0.8 - np.exp(-np.exp(log_size)))
        log_size, log_average = adaptation.get_state()
    assert np.exp(log_average) == pytest.approx(-np.log(0.8), rel=0.02)


def test_a_warm_up_for_which_there_is_no_time_keeps_the_first_step_size():
    evaluate = gaussian(np.zeros(2), 1e4 * np.eye(2))
    (chain,) = run_together(evaluate, np.zeros((1, 2)), [0], nothing, **OPTIONS, max_seconds=1e-9)
    assert chain.draws.shape == (4, 2)
    assert 1e-4 < chain.step_size < 0.1


def test_a_cliff_diverges_and_the_chain_stays():
    def evaluate(points):
        inside = np.abs(points).max(-1) < 1
        return np.where(inside, 0.0, np.nan), np.zeros_like(points)

    options = {**OPTIONS, "num_samples": 50, "warmup_steps": 0}
    (chain,) = run_together(evaluate, np.zeros((1, 2)), [0], nothing, **options)
    assert chain.diverging.any()
    assert np.abs(chain.draws).max() < 1


def test_the_first_step_size_is_of_the_order_of_the_scale():
    sampler = _Sampler(np.random.default_rng(seed(0)), np.zeros(20), 10)
    evaluate = gaussian(np.zeros(20), np.eye(20) / 1e-6)
    finding = sampler.find_step_size()
    point = next(finding)
    sampler.value = 0.0
    for _ in range(50):
        value, gradient = evaluate(point[None])
        try:
            point = finding.send((float(value[0]), gradient[0]))
        except StopIteration:
            break
    assert 1e-4 < sampler.step_size < 1e-2

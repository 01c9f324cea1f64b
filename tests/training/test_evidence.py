"""Regression by evidence against direct Gaussian algebra, and against weights and noise that are known."""

import numpy as np
import pytest
import scipy.stats

from jaxmlip.training.evidence import LinearPosterior, covariance, fit_by_evidence

SIZES = np.array([3.0, 4.0, 5.0, 8.0, 3.0, 6.0])


def posterior(seed: int = 0) -> LinearPosterior:
    """Six labels, blocks of two and nine features, hyperparameters given."""
    rng = np.random.default_rng(seed)
    features = [rng.standard_normal((6, 2)), rng.standard_normal((6, 9))]
    return LinearPosterior(features, rng.standard_normal(6), SIZES, np.array([2.0, 0.3]), 0.4, 0.0)


def drawn(rng: np.random.Generator, labels: int, deviations=(1.0, 0.1), noise: float = 0.05, blocks=(5, 40)):
    """Features, sizes, weights from a prior with these deviations, and labels with this noise."""
    features = [rng.standard_normal((labels, n)) for n in blocks]
    weights = [d * rng.standard_normal(n) for d, n in zip(deviations, blocks, strict=True)]
    sizes = rng.integers(3, 60, labels).astype(float)
    clean = sum(x @ w for x, w in zip(features, weights, strict=True))
    return features, sizes, weights, clean + noise * sizes**0.5 * rng.standard_normal(labels)


def test_mean_is_weighted_ridge_regression():
    """(XᵀN⁻¹X + V⁻¹)⁻¹ XᵀN⁻¹y, in the space of weights."""
    p = posterior()
    x, v = np.concatenate(p.features, axis=1), np.repeat(p.variances, [2, 9])
    weight = 1 / (p.noise**2 * p.sizes)
    direct = np.linalg.solve((x.T * weight) @ x + np.diag(1 / v), x.T @ (weight * p.labels))
    np.testing.assert_allclose(np.concatenate(p.mean()), direct, rtol=1e-9)


def test_predictions_and_samples_have_the_posterior_covariance():
    p = posterior()
    x, v = np.concatenate(p.features, axis=1), np.repeat(p.variances, [2, 9])
    exact = np.linalg.inv((x.T / (p.noise**2 * p.sizes)) @ x + np.diag(1 / v))
    rng = np.random.default_rng(1)
    others = [rng.standard_normal((4, 2)), rng.standard_normal((4, 9))]
    mean, deviation = p.predict(others)
    z = np.concatenate(others, axis=1)
    np.testing.assert_allclose(mean, z @ np.concatenate(p.mean()), rtol=1e-9)
    np.testing.assert_allclose(deviation**2, np.diag(z @ exact @ z.T), rtol=1e-9)

    draws = np.array([np.concatenate(p.sample(rng)) for _ in range(4000)])
    np.testing.assert_allclose(draws.mean(axis=0), np.concatenate(p.mean()), atol=0.1)
    np.testing.assert_allclose(np.cov(draws.T), exact, atol=0.15)


def test_left_out_errors_are_those_of_refitting():
    p = posterior()
    for place, error in enumerate(p.left_out()):
        rest = np.delete(np.arange(6), place)
        without = LinearPosterior(
            [x[rest] for x in p.features], p.labels[rest], p.sizes[rest], p.variances, p.noise, 0.0
        )
        mean, _ = without.predict([x[[place]] for x in p.features])
        assert error == pytest.approx(mean[0] - p.labels[place], rel=1e-9)


def test_log_evidence_is_the_gaussian_log_density():
    features, sizes, _, labels = drawn(np.random.default_rng(3), 60)
    p = fit_by_evidence(features, labels, sizes)
    kernels = [x @ x.T for x in features]

    def log_density(noise: float) -> float:
        spread = covariance(kernels, sizes, p.variances, noise)
        return float(scipy.stats.multivariate_normal.logpdf(labels, np.zeros(len(labels)), spread))  # pyright: ignore

    assert p.log_evidence == pytest.approx(log_density(p.noise), rel=1e-9)
    assert max(log_density(0.5 * p.noise), log_density(2 * p.noise)) < p.log_evidence


@pytest.mark.slow
def test_evidence_finds_scales_and_noise():
    """Within what 400 labels can say of them."""
    features, sizes, _, labels = drawn(np.random.default_rng(4), 400)
    p = fit_by_evidence(features, labels, sizes)
    assert p.noise == pytest.approx(0.05, rel=0.1)
    np.testing.assert_allclose(p.variances**0.5, [1.0, 0.1], rtol=0.5)


def test_a_block_without_meaning_is_switched_off():
    rng = np.random.default_rng(5)
    features, sizes, _, labels = drawn(rng, 200)
    p = fit_by_evidence([*features, rng.standard_normal((200, 30))], labels, sizes)
    assert p.variances[2] < 0.03 * p.variances[1]


def test_results_do_not_depend_on_units():
    """In meV instead of eV, and with features 1000 times as large."""
    features, sizes, _, labels = drawn(np.random.default_rng(6), 80)
    p, q = fit_by_evidence(features, labels, sizes), fit_by_evidence([x * 1e3 for x in features], labels * 1e3, sizes)
    assert q.noise == pytest.approx(1e3 * p.noise, rel=1e-3)
    for one, other in zip(p.mean(), q.mean(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-2, atol=1e-4)


def test_deviations_are_calibrated():
    """Errors of predictions over predicted deviations are standard normal, with fitted hyperparameters."""
    scores = []
    for seed in range(20):
        rng = np.random.default_rng(100 + seed)
        features, sizes, weights, labels = drawn(rng, 60)
        others = [rng.standard_normal((50, x.shape[1])) for x in features]
        mean, deviation = fit_by_evidence(features, labels, sizes).predict(others)
        scores.append((mean - sum(x @ w for x, w in zip(others, weights, strict=True))) / deviation)
    scores = np.concatenate(scores)
    assert np.std(scores) == pytest.approx(1.0, abs=0.15)
    assert np.mean(np.abs(scores) < 1.96) == pytest.approx(0.95, abs=0.04)


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        ([np.ones((1, 2))], np.ones(1), "two or more"),
        ([], np.ones(3), "no blocks"),
        ([np.ones((3, 2)), np.zeros((3, 1))], np.ones(3), "are 0 in every frame"),
        ([np.ones((3, 2))], np.array([1.0, np.nan, 2.0]), "not finite"),
    ],
)
def test_what_cannot_be_fitted_is_refused(features, labels, message):
    with pytest.raises(ValueError, match=message):
        fit_by_evidence(features, labels, np.ones(len(labels)))

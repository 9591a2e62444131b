"""The classifier's test: exact under permutation, blind to what only repeats, the same in both forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from tasks.drift import classifier


def features(rows: int, width: int, seed: int) -> csr_matrix:
    generator = np.random.default_rng(seed)
    dense = (generator.random((rows, width)) < 0.2).astype(np.float32)
    return csr_matrix(dense / np.maximum(1, np.sqrt(dense.sum(axis=1, keepdims=True))))


def test_both_forms_of_the_equations_give_the_same_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(1)
    given = features(60, 20, 1)
    targets = generator.random((60, 3), dtype=np.float32)
    fold = classifier.folds(np.arange(60), generator)
    learned = generator.random(60) < 0.7
    found = []
    for dual in (0, 100):
        monkeypatch.setattr(classifier, "DUAL", dual)
        scores = np.zeros((60, 3))
        for rows, predicted in classifier.OutOfFold(given, fold, learned).scores(targets):
            scores[rows] = predicted
        found.append(scores)
    np.testing.assert_allclose(found[0], found[1], atol=2e-5)
    # and those of ridge regression as scikit-learn has it
    from sklearn.linear_model import Ridge

    rows = fold == 2
    ridge = Ridge(alpha=classifier.RIDGE, fit_intercept=False)
    ridge.fit(given[learned & ~rows].toarray(), targets[learned & ~rows])
    np.testing.assert_allclose(found[0][rows], ridge.predict(given[rows].toarray()), atol=2e-5)


def test_the_area_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import roc_auc_score

    generator = np.random.default_rng(3)
    labels = generator.random((50, 4)) < 0.4
    scores = generator.random((50, 4), dtype=np.float32)
    every = np.arange(50)
    found = classifier._auc(labels, lambda: iter([(every, scores)]))
    wanted = [roc_auc_score(labels[:, at], scores[:, at]) for at in range(4)]
    np.testing.assert_allclose(found, wanted)


def test_a_word_of_one_side_is_found() -> None:
    given = features(200, 30, 2).toarray()
    arrived = np.arange(200) >= 100
    given[arrived, 0] = 1
    found = classifier.two_samples(
        csr_matrix(given), arrived, np.arange(200), 199, np.random.default_rng(0)
    )
    assert found.auc > 0.95
    assert found.p_value == 1 / 200
    assert found.scores[arrived].mean() > found.scores[~arrived].mean()


def test_p_values_without_a_difference_are_spread_evenly() -> None:
    p_values = []
    for seed in range(60):
        arrived = np.random.default_rng(seed).permutation(np.arange(80) >= 40)
        found = classifier.two_samples(
            features(80, 15, seed + 100), arrived, np.arange(80), 99, np.random.default_rng(seed)
        )
        p_values.append(found.p_value)
    assert 0.35 < np.mean(p_values) < 0.65
    assert sum(p <= 0.05 for p in p_values) <= 9  # 3 expected; 10 or more have a chance of 0.1%


def test_what_one_unit_repeats_is_no_evidence() -> None:
    """A conversation of a hundred rows that are all alike is one draw, on whichever side it fell."""
    given = np.vstack(
        [features(60, 20, 4).toarray(), np.tile(features(1, 20, 5).toarray(), (60, 1))]
    )
    unit = np.concatenate([np.arange(60), np.full(60, 99)])
    arrived = np.arange(120) >= 30
    found = classifier.two_samples(csr_matrix(given), arrived, unit, 199, np.random.default_rng(0))
    assert found.p_value > 0.05
    alone = classifier.two_samples(
        csr_matrix(given), arrived, np.arange(120), 199, np.random.default_rng(0)
    )
    assert alone.p_value == 1 / 200


def test_a_unit_is_in_one_fold() -> None:
    unit = np.repeat(np.arange(30), 4)
    fold = classifier.folds(unit, np.random.default_rng(0))
    assert all(len(set(fold[unit == name])) == 1 for name in range(30))
    assert np.bincount(fold).tolist() == [24] * classifier.FOLDS


def test_classes_are_predicted_by_what_was_learned_alone() -> None:
    given = np.zeros((100, 4), np.float32)
    classes = np.arange(100) % 2
    given[np.arange(100), classes] = 1
    learned = np.arange(100) < 50
    classes[50:60] = 1 - classes[50:60]  # of rows that are only scored
    classes[60] = -1
    fold = classifier.folds(np.arange(100), np.random.default_rng(0))
    best, margin = classifier.predicted(csr_matrix(given), classes, fold, learned)
    np.testing.assert_array_equal(best, np.arange(100) % 2)
    assert (margin[50:60] > 0.5).all()
    assert margin[70] == 0

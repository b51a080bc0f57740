"""The linear classifier on thumbnails, against cases solved by hand."""

import numpy as np
import pytest

from tbkd_utils.errors import UsageError
from tbkd_utils.models.ridge import fit_ridge, thumbnails


def test_a_thumbnail_is_a_mean_over_an_area() -> None:
    image = np.zeros((1, 32, 32), np.uint8)
    image[0, :2, :2] = 255
    image[0, 2, 0] = 204
    small = thumbnails(image)
    assert small.shape == (1, 256)
    assert small[0, 0] == 1.0
    assert small[0, 16] == pytest.approx(0.2)  # 204 / 255 / 4
    assert small.sum() == pytest.approx(1.2)


def test_one_feature_by_hand() -> None:
    x, classes = np.array([[0.0], [0.0], [2.0], [2.0]]), np.array([0, 0, 1, 1])
    fitted = fit_ridge(x, classes, penalty=0.25)
    # Standardized to -1 and 1; covariance with class 1 is 0.5, variance 1: the slope is 0.5 / 1.25.
    assert fitted.weights[:, 1] == pytest.approx([0.4])
    assert fitted.scores(np.array([[0.0], [2.0]]))[:, 1] == pytest.approx([0.1, 0.9])
    assert fitted.scores(np.array([[7.0]])).sum() == pytest.approx(1)


def test_weights_count_like_copies_and_constant_features_tell_nothing() -> None:
    rng = np.random.default_rng(0)
    x, classes = rng.normal(size=(6, 2)), np.array([0, 1, 2, 0, 1, 2])
    x = np.column_stack([x, np.full(6, 3.0)])
    twice = np.array([0, 0, 1, 2, 3, 4, 5])
    weighted = fit_ridge(x, classes, np.array([2.0, 1, 1, 1, 1, 1]))
    copied = fit_ridge(x[twice], classes[twice])
    assert np.allclose(weighted.scores(x), copied.scores(x))
    assert np.allclose(weighted.weights[2], 0)


def test_what_does_not_fit_is_refused() -> None:
    x = np.zeros((3, 2))
    with pytest.raises(UsageError, match=r"got \(3, 2\), 2, 3"):
        fit_ridge(x, np.array([0, 1]), np.ones(3))
    with pytest.raises(UsageError, match="above 0"):
        fit_ridge(x, np.array([0, 1, 1]), penalty=0)

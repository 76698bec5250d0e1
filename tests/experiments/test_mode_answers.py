"""Who is right and how sure the modes are, against small cases done by hand."""

import numpy as np
import pytest

from experiments.figures import mode_answers


def test_verdicts_count_every_image_once() -> None:
    labels = np.array([0, 0, 0, 0, 0, 0])
    low = np.array([0, 0, 1, 1, 1, 1])
    high = np.array([0, 1, 0, 1, 1, 2])
    assert list(mode_answers.verdicts(low, high, labels).values()) == [1, 1, 1, 2, 1]


def test_disagreements_come_firmest_first() -> None:
    low = np.array([[0.6, 0.4], [0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
    high = np.array([[0.4, 0.6], [0.8, 0.2], [0.1, 0.9], [0.6, 0.4]])
    rows, margins = mode_answers.disagreements(low, high)
    assert rows.tolist() == [2, 3, 0]
    np.testing.assert_allclose(margins, [(0.6 + 0.8) / 2, (0.4 + 0.2) / 2, 0.2])
    rows, margins = mode_answers.disagreements(low, low)
    assert len(rows) == len(margins) == 0


def test_reliability_bins_and_error() -> None:
    confidence = np.array([0.5, 0.52, 0.75, 0.8, 1.0])  # 0.5 and 0.75 belong to the bin they close
    probabilities = np.stack([confidence, 1 - confidence], -1)
    found = mode_answers.reliability(probabilities, np.array([0, 1, 0, 0, 1]), bins=4)
    assert found.count.tolist() == [0, 1, 2, 2]
    np.testing.assert_allclose(found.accuracy, [np.nan, 1, 0.5, 0.5])
    np.testing.assert_allclose(found.confidence, [np.nan, 0.5, 0.635, 0.9])
    assert found.error == pytest.approx((0.5 + 2 * 0.135 + 2 * 0.4) / 5)


def test_sure_and_right_is_calibrated() -> None:
    assert mode_answers.reliability(np.eye(3), np.arange(3)).error == 0

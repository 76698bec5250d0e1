"""The cascade: its figures are what it does, its threshold is the one asked for."""

import json

import numpy as np
import pytest

from dual_precision.deploy.cascade.calibration import (
    Costs,
    Evidence,
    calibrate,
    choose_point,
    curve,
)
from dual_precision.deploy.cascade.rule import Cascade, answer, margin

ROWS = 400


def evidence(mirror, blend):
    """Logits of 3 classes around the label: `then` is nearer to it than `first`."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, ROWS)
    truth = 2 * np.eye(3)[labels]
    first, second, then = (truth + s * rng.normal(size=(ROWS, 3)) for s in (1.5, 1.5, 0.8))
    looks = [look.astype(np.float32) for look in (first, then, second)]
    return Evidence(
        looks[0], looks[1], labels, Costs(2.0, 16.0, 1.0), looks[2] if mirror else None, blend
    )


def test_margin_by_hand():
    logits = np.array([[3.0, 1.0, 2.5], [1.0, 1.0, 0.0]], np.float32)
    np.testing.assert_array_equal(margin(logits), [0.5, 0.0])
    with pytest.raises(ValueError, match="2 classes or more"):
        margin(logits[:, :1])


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("blend", [0.0, 1.0])
def test_every_point_is_what_the_cascade_does(mirror, blend):
    own = evidence(mirror, blend)
    for point in curve(own, 7):
        cascade = Cascade("low", "high", point.threshold, mirror, blend)
        got = answer(cascade, own.first, lambda rows: own.mirror[rows], lambda rows: own.then[rows])
        right = got.logits.argmax(1) == own.labels
        assert point.accuracy == pytest.approx(100 * right.mean())
        assert point.escalated == pytest.approx(got.escalated.mean())
        assert point.mirrored == pytest.approx(got.mirrored.mean())
        cost = 2 * (1 + got.mirrored.mean()) + 15 * got.escalated.mean()
        assert point.cost == pytest.approx(cost)
        assert point.relative == pytest.approx(cost / 16)
        then = own.then.argmax(1) == own.labels
        assert point.difference == pytest.approx(100 * (right.mean() - then.mean()))


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("blend", [0.0, 1.0])
def test_what_is_no_number_is_never_sure(mirror, blend):
    """At any threshold, 0 too, `then` answers such a row alone; a curve says what is done then."""
    own = evidence(mirror, blend)
    broken = np.arange(ROWS) % 10 == 0
    own.first[broken, 1] = np.nan
    for point in curve(own, 5):
        cascade = Cascade("low", "high", point.threshold, mirror, blend)
        got = answer(cascade, own.first, lambda rows: own.mirror[rows], lambda rows: own.then[rows])
        assert got.escalated[broken].all()
        np.testing.assert_array_equal(got.logits[broken], own.then[broken])
        assert point.escalated == pytest.approx(got.escalated.mean())
        assert point.mirrored == pytest.approx(got.mirrored.mean())
        assert point.accuracy == pytest.approx(100 * np.mean(got.logits.argmax(1) == own.labels))
    own.first[:] = np.nan
    with pytest.raises(ValueError, match="without one finite margin"):
        curve(own, 5)


def test_the_ends_of_a_curve_are_the_modes():
    own = evidence(mirror=False, blend=0.0)
    points = curve(own)
    first, last = points[0], points[-1]
    assert (first.escalated, first.cost) == (0, 2)
    assert first.accuracy == 100 * np.mean(own.first.argmax(1) == own.labels)
    assert (last.escalated, last.cost, last.difference, last.error) == (1, 17, 0, 0)
    costs = [point.cost for point in points]
    assert costs == sorted(costs)


def test_calibration_reaches_what_it_is_asked_for():
    own = evidence(mirror=True, blend=1.0)
    dear, cheap = calibrate(own, cost=0.6).expected, calibrate(own, cost=0.3).expected
    assert cheap.relative <= 0.3 < dear.relative <= 0.6
    assert cheap.accuracy < dear.accuracy
    wanted = calibrate(own, accuracy=-2.0).expected
    assert wanted.difference > -3
    assert wanted.cost <= calibrate(own, accuracy=-0.5).expected.cost
    with pytest.raises(ValueError, match=r"the most that this cascade reaches on these data is \+"):
        calibrate(own, accuracy=30.0)
    with pytest.raises(ValueError, match=r"expected at least 0\.125"):
        calibrate(own, cost=0.1)
    with pytest.raises(ValueError, match="accuracy=nan: expected a finite number"):
        calibrate(own, accuracy=float("nan"))
    for arguments in ({}, {"accuracy": 0.0, "cost": 0.5}):
        with pytest.raises(ValueError, match="expected one of them"):
            choose_point(curve(own), **arguments)


def test_it_survives_json():
    cascade = calibrate(evidence(mirror=True, blend=1.0), cost=0.5)
    assert Cascade.from_json(json.loads(json.dumps(cascade.to_json()))) == cascade
    for broken in ({}, {"expected": None, "threshold": 1}, {**cascade.to_json(), "colour": 1}):
        with pytest.raises(ValueError, match="expected what Cascade"):
            Cascade.from_json(broken)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), True])
def test_senseless_thresholds_are_refused(value):
    with pytest.raises(ValueError, match="expected a finite number"):
        Cascade("low", "high", value)


def test_numbers_of_numpy_are_written_as_any():
    own = Cascade("low", "high", np.float32(1), np.bool_(True), np.float64(0.5))
    assert Cascade.from_json(json.loads(json.dumps(own.to_json()))) == own
    for wrong in ({"mirror": "no"}, {"mirror": 1}, {"first": 3}):
        with pytest.raises(ValueError, match=r"expected (True or False|the name of a mode)"):
            Cascade(**{"first": "low", "then": "high", "threshold": 1.0, **wrong})


@pytest.mark.parametrize("label", [-1, 3, 1.5])
def test_labels_of_no_class_are_refused(label):
    own = evidence(mirror=False, blend=0.0)
    with pytest.raises(ValueError, match="expected whole numbers from 0 to 2"):
        Evidence(own.first, own.then, np.full(ROWS, label), own.costs)


def test_logits_that_do_not_fit_are_refused():
    own = evidence(mirror=False, blend=0.0)
    with pytest.raises(ValueError, match="expected the same"):
        Evidence(own.first, own.then[:-1], own.labels, own.costs)
    with pytest.raises(ValueError, match="expected the same"):
        Evidence(own.first, own.then, own.labels[:-1], own.costs)

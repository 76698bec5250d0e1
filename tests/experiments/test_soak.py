"""The soak: a few seconds of it, and that it sees what goes wrong."""

import collections

import numpy as np
import pytest

from dual_precision.deploy import Predictor
from experiments.benchmark.reliability import soak
from experiments.benchmark.reliability.damage_ways import save_tiny_packed

# Once in five runs the interpreter reports a directory iterator that somebody below left open.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed scandir iterator:ResourceWarning")


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    path = tmp_path_factory.mktemp("soak") / "net.safetensors"
    save_tiny_packed(path)
    return Predictor(path, batch_sizes=(1, 8))


def test_a_few_seconds(predictor, monkeypatch, capsys):
    monkeypatch.setattr(soak, "Predictor", lambda path, sizes: predictor)
    soak.measure_soak(network="net.safetensors", minutes=0.03, threads=8)
    out = capsys.readouterr().out
    for mode in ("auto", "high", "low"):
        assert f"\n{mode}: " in out
    assert ", 0 compilations" in out
    assert out.endswith("PASS\n")


class Flaky:
    """A Predictor whose answers change by one bit once threads ask."""

    def __init__(self, predictor):
        self.predictor, self.calls = predictor, 0
        self.precisions, self.info, self.cascade = predictor.precisions, predictor.info, None

    def predict(self, images, mode):
        self.calls += 1
        found = self.predictor.predict(images, mode)
        alone = self.calls <= len(soak.ROWS) * len(self.precisions)
        return found if alone or mode == "low" else np.nextafter(found, np.float32(np.inf))


def test_a_wrong_bit_is_counted(predictor, monkeypatch):
    found = soak.soak(Flaky(predictor), 0.5, threads=2)
    assert found.wrong["high"] == found.answers["high"] > 0
    assert found.wrong["low"] == 0
    assert found.answers["low"] > 0
    monkeypatch.setattr(soak, "soak", lambda *_: found)
    monkeypatch.setattr(soak, "Predictor", lambda *_: predictor)
    with pytest.raises(ValueError, match=r"wrong answers.*expected 0, 0 and flat"):
        soak.measure_soak(network="net.safetensors")


class Failing(Flaky):
    """Fails where the other changes bits."""

    def predict(self, images, mode):
        if self.calls >= len(soak.ROWS) * len(self.precisions):
            raise ArithmeticError("on purpose")
        return super().predict(images, mode)


def test_a_thread_that_fails_ends_the_soak(predictor):
    with pytest.raises(ArithmeticError, match="on purpose"):
        soak.soak(Failing(predictor), 600, threads=2)


def test_memory_that_grows_is_not_flat():
    def flat(*mebibytes):
        memory = [size << 20 for size in mebibytes]
        none = collections.Counter()
        return soak.Soaked(none, none, 0, 0, memory).flat

    assert flat(300, 300, 300)
    assert flat(300, 400, 331), "32 MiB more are allowed"
    assert not flat(300, 300, 340)
    assert flat(1000, 1000, 1049), "5 % of it where that is more"
    assert not flat(1000, 1000, 1060)
    assert flat(400, 300, 300)


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("nan"), float("inf")])
def test_no_time_to_soak_for(minutes):
    with pytest.raises(ValueError, match="expected a number above 0, and an end"):
        soak.measure_soak(network="net.safetensors", minutes=minutes)

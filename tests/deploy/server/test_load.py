"""The commands that load a server, with a tiny network and for a moment."""

import contextlib
import json
import os
from types import SimpleNamespace

import numpy as np
import pytest

from dual_precision.deploy import Predictor
from dual_precision.deploy.server.engines import PlanesEngine
from dual_precision.deploy.server.service import Service, measured
from dual_precision.deploy.server.settings import BudgetSettings, Limits
from experiments.benchmark.serving import burst, clients
from experiments.benchmark.serving.child import served


def in_thread(start_server, engine, seen):
    """In the place of `served`: no process of its own."""

    @contextlib.contextmanager
    def serve(*arguments):
        seen.append(arguments)
        service = Service(BudgetSettings("latency", 50.0), Limits())
        yield start_server(service, engine).address, os.getpid()

    return serve


def test_the_burst(path, images, start_server, monkeypatch, tmp_path, capsys):
    test = SimpleNamespace(images=images, labels=np.zeros(len(images), np.int64))
    monkeypatch.setattr(burst.data, "load", lambda _: SimpleNamespace(test=test))
    for name, value in {"SEEDS": (0, 1), "MEASURED": 0.2, "REST": 0.0, "MOST": 20}.items():
        monkeypatch.setattr(burst, name, value)
    engine, seen = measured(PlanesEngine(path, (2, 8), (64,))), []
    monkeypatch.setattr(burst, "served", in_thread(start_server, engine, seen))
    out = tmp_path / "burst.json"
    burst.measure_serving(
        network=str(path), planes=["2", "8"], deadline=60, seconds=0.3, out=str(out)
    )
    assert seen == [(str(path), "--planes=2,8", "--budget=latency:20", "--nosamples")]
    found = json.loads(out.read_text())
    assert set(found["runs"]) == set(burst.WAYS)
    assert all(len(runs) == 2 for runs in found["runs"].values())
    assert found["runs"]["low"][0]["low"] == 100
    assert found["runs"]["high"][0]["low"] == 0
    assert "over the deadline, budget to high" in capsys.readouterr().out


def test_arrivals_are_three_times_as_many_in_the_burst():
    times = burst.arrivals(0, 100.0, 9.0)
    inside = sum(3 <= at < 6 for at in times)
    assert 2.5 < inside / ((len(times) - inside) / 2) < 3.5
    assert times == sorted(burst.arrivals(0, 100.0, 9.0))


def test_a_load_of_too_many_requests_is_shorter():
    """With its three thirds: it was cut in the burst, and nothing said so."""
    assert burst.length_of_run(100.0, 12.0) == 12.0
    seconds = burst.length_of_run(2000.0, 12.0)
    times = burst.arrivals(0, 2000.0, seconds)
    assert abs(len(times) - burst.MOST) < 500  # seven times the deviation of a Poisson number
    assert sum(at >= 2 * seconds / 3 for at in times) > burst.MOST / 10


def test_where_high_never_is_late_there_is_nothing_to_compare():
    """0 / 1e-9 was a bar that is passed."""
    row = {"late": 0.0, "accuracy": 90.0}
    late, lost = burst.lateness_lines(row, row).splitlines()
    assert "not measured" in late
    assert "PASS" not in late
    assert lost.endswith("PASS")
    late, _ = burst.lateness_lines({**row, "late": 30.0}, {**row, "late": 3.0}).splitlines()
    assert late.endswith("0.100 x (bar 0.33) PASS")


def test_a_refusal_is_no_fast_answer():
    answered = [burst.Sent(ms, "w2a8", 64) for ms in (100.0, 300.0)]
    found = burst.summary([*answered, *[burst.Sent(1.0, None, 0)] * 2], 250.0, "2")
    assert (found["p50"], found["refused"], found["late"]) == (200.0, 50.0, 75.0)
    assert (found["accuracy"], found["low"]) == (100.0, 50.0)
    with pytest.raises(ValueError, match="none was answered"):
        burst.summary([burst.Sent(1.0, None, 0)], 250.0, "2")


def test_many_clients(path, engine, start_server, monkeypatch, capsys):
    monkeypatch.setattr(clients, "Predictor", lambda network: Predictor(network, (4,)))
    monkeypatch.setattr(clients, "served", in_thread(start_server, engine, []))
    clients.measure_clients(network=str(path), seconds=1.0)
    assert "PASS" in capsys.readouterr().out


def test_a_server_that_does_not_start(path):
    with (
        pytest.raises(ValueError, match="the server did not start"),
        served(str(path), "--budget=x"),
    ):
        pass

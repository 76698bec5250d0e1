"""Mean and spread of several runs."""

import json

import pytest

from experiments import summary


def finished_run(folder, seed, **results):
    folder.mkdir()
    config = {"experiment": {"mode": "two_phase", "passes": 4.0, "seed": seed}}
    (folder / "config.json").write_text(json.dumps(config))
    rows = [{"mode": "low", "bits": "w2a2", **results}]
    (folder / "results.json").write_text(json.dumps({"rows": rows}))
    return str(folder)


def test_mean_and_sample_deviation_over_the_seeds(tmp_path, capsys):
    one = finished_run(tmp_path / "a", 0, validation=80.0, test=79.0)
    two = finished_run(tmp_path / "b", 1, validation=82.0, test=79.5)
    summary.main(one, two)
    head, _, low = capsys.readouterr().out.splitlines()
    assert [cell.strip() for cell in low.split("|")[1:-1]] == [
        "low", "w2a2", "81.00 ± 1.41", "79.25 ± 0.35", "2"
    ]  # fmt: skip
    assert "| validation % |" in head


def test_runs_that_did_not_read_the_test_set(tmp_path, capsys):
    summary.main(finished_run(tmp_path / "a", 0, validation=80.0))
    assert capsys.readouterr().out.splitlines()[-1] == "| low  | w2a2 |        80.00 |    1 |"


def test_runs_of_text(tmp_path, capsys):
    """Their results are bits per byte; what else is in a row is no matter of seeds."""
    one = finished_run(tmp_path / "a", 0, validation_bits=2.25, test_bits=2.5, test_accuracy=50.0)
    two = finished_run(tmp_path / "b", 1, validation_bits=2.75, test_bits=2.502)
    summary.main(one, two)
    head, _, low = ([c.strip() for c in s.split("|")] for s in capsys.readouterr().out.splitlines())
    titles = ["mode", "bits", "validation bits/byte", "test bits/byte", "runs"]
    assert head[1:-1] == titles
    assert low[1:-1] == ["low", "w2a2", "2.500 ± 0.354", "2.501 ± 0.001", "2"]


def test_runs_without_a_result_in_common(tmp_path):
    one = finished_run(tmp_path / "a", 0, validation_bits=2.25)
    two = finished_run(tmp_path / "b", 1, validation=80.0)
    with pytest.raises(ValueError, match="the rows of 'low' have no results in common: expected"):
        summary.main(one, two)


def test_refused(tmp_path):
    with pytest.raises(ValueError, match="no workdirs given"):
        summary.main()
    with pytest.raises(ValueError, match=r"has no results\.json: expected a finished run"):
        summary.main(str(tmp_path))
    with pytest.raises(ValueError, match=r"there is no folder .*nothing: expected .* check the"):
        summary.main(str(tmp_path / "nothing"))
    one = finished_run(tmp_path / "a", 0, validation=80.0)
    config = {"experiment": {"mode": "two_phase", "passes": 8.0, "seed": 1}}
    two = finished_run(tmp_path / "b", 1, validation=82.0)
    (tmp_path / "b" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="2 configs in 2 runs: expected all but the seed alike"):
        summary.main(one, two)


def test_a_seed_counts_once(tmp_path):
    one = finished_run(tmp_path / "a", 0, validation=80.0)
    two = finished_run(tmp_path / "b", 0, validation=82.0)
    with pytest.raises(ValueError, match=r"a and .*b have the same seed, 0: expected runs of diff"):
        summary.main(one, two)
    with pytest.raises(ValueError, match=r"a and .*a/\.\./a are one folder: expected runs of diff"):
        summary.main(one, f"{one}/../a")


ODD_ROWS = [
    "3",
    "[]",
    "{}",
    '{"rows": null}',
    '{"rows": []}',
    '{"rows": [3]}',
    '{"rows": [{"validation": 80.0}]}',
    '{"rows": [{"mode": 3, "validation": 80.0}]}',
    '{"rows": [{"mode": "low", "validation": "80"}]}',
    '{"rows": [{"mode": "low", "validation": NaN}]}',
    '{"rows": [{"mode": "low", "validation": 1e400}]}',
    '{"rows": [{"mode": "low", "validation": 80.0, "test": true}]}',
    '{"rows": [{"mode": "low", "validation_bits": NaN}]}',
    '{"rows": [{"mode": "low", "test_bits": -1}]}',
    '{"rows": [{"mode": "low", "test_bits": 1e400}]}',
    "[" * 100_000,
    '{"rows": ' + "[" * 100 + "]" * 100 + "}",
]


@pytest.mark.parametrize("text", ODD_ROWS, ids=lambda text: text[:60])
def test_odd_results_are_refused(tmp_path, text):
    one = finished_run(tmp_path / "a", 0, validation=80.0)
    (tmp_path / "a" / "results.json").write_text(text)
    with pytest.raises(ValueError, match=r"results\.json"):
        summary.main(one)


@pytest.mark.parametrize("text", ["3", "{}", '{"experiment": []}', "[" * 100_000])
def test_odd_configs_are_refused(tmp_path, text):
    one = finished_run(tmp_path / "a", 0, validation=80.0)
    (tmp_path / "a" / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json is not a run's config"):
        summary.main(one)


@pytest.mark.parametrize("modes", [["high"], ["low", "low"]])
def test_runs_of_other_modes_are_no_mean(tmp_path, modes):
    one = finished_run(tmp_path / "a", 0, validation=80.0)
    two = finished_run(tmp_path / "b", 1, validation=82.0)
    rows = [{"mode": mode, "bits": "w2a2", "validation": 82.0} for mode in modes]
    (tmp_path / "b" / "results.json").write_text(json.dumps({"rows": rows}))
    with pytest.raises(ValueError, match=r"b has rows of .*: expected the same modes in every run"):
        summary.main(one, two)

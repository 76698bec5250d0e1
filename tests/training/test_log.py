"""metrics.jsonl: written, read, cut back to a checkpoint; the journal of a run."""

import pytest

from dual_precision.training.log import Journal, append_record, drop_records_after, read_records


def test_what_is_appended_is_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    records = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]
    for record in records:
        append_record(path, record)
    assert read_records(path) == records


def test_later_records_and_half_lines_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2, 3):
        append_record(path, {"step": step})
    with path.open("a") as out:
        out.write('{"step": 2, "lo')
    drop_records_after(path, 2)
    assert read_records(path) == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize(
    "line", ["[]", "3", '{"step": "2"}', '{"step": null}', "[" * 100_000, '{"step": 1e999}']
)
def test_lines_of_another_hand_are_no_records(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{line}\n{{"step": 2}}\n')
    assert read_records(path) == [{"step": 2}]
    drop_records_after(path, 2)
    assert path.read_text() == '{"step": 2}\n'


def test_no_log_is_no_error(tmp_path):
    drop_records_after(tmp_path / "metrics.jsonl", 2)


def test_a_journal_writes_tells_and_goes_on(tmp_path, capsys):
    """Opened at a step, it drops what was written after it; nothing is said twice."""
    told = []
    with Journal(tmp_path / "run", 30, 0, 8, [told.append]) as journal:
        for step in (10, 20):
            journal.show("first", 0.5, step)
            journal.write({"step": step, "epoch": step // 10, "phase": "first"}, {"low": 0.75})
    with Journal(tmp_path / "run", 30, 10, 8, [told.append]) as journal:
        journal.write({"step": 20, "epoch": 2, "phase": "again"}, {"low": 0.5})
    records = read_records(tmp_path / "run" / "metrics.jsonl")
    assert [(record["step"], record["phase"]) for record in records] == [
        (10, "first"),
        (20, "again"),
    ]
    assert [told[0], told[2]] == records
    assert all(record["examples_per_second"] > 0 for record in told)
    assert "first epoch 1: validation low 0.7500" in capsys.readouterr().out

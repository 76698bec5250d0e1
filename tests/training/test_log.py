"""metrics.jsonl: written, read, cut back to a checkpoint."""

from dual_precision.training.log import append_record, drop_records_after, read_records


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


def test_no_log_is_no_error(tmp_path):
    drop_records_after(tmp_path / "metrics.jsonl", 2)

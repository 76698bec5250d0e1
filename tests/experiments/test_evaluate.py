"""What a mode is worth, of a packed file and of the run that it was packed from."""

import json
import re
from pathlib import Path

import pytest

from experiments.deploy import pack
from experiments.deploy.evaluate import evaluate_command

ROOT = Path(__file__).parents[2]


def said(source, folder, capsys, split="validation"):
    """mode -> percent, as the command prints it."""
    evaluate_command(str(source), split=split, data_dir=str(folder))
    rows = re.findall(r"^\| (\w+) +\| \w+ +\| +([\d.]+) \|", capsys.readouterr().out, re.MULTILINE)
    return {mode: float(percent) for mode, percent in rows}


def test_a_file_and_its_run_have_the_accuracies_of_the_run(
    two_phase_run, digits_study, tmp_path, capsys
):
    run = two_phase_run
    pack.pack_run(run, tmp_path / "net")
    rows = json.loads((run / "results.json").read_text())["rows"]
    for split in ("validation", "test"):
        wanted = {row["mode"]: pytest.approx(row[split], abs=0.3) for row in rows}
        for source in (run, tmp_path / "net"):
            assert said(source, digits_study.parent / "data", capsys, split) == wanted


@pytest.mark.parametrize(
    ("source", "more", "message"),
    [
        (
            "notebooks/networks/austen-w2a8-w8a8.safetensors",
            {},
            "reads text: expected a network",
        ),
        ("notebooks", {}, "has no config.json: expected the folder of a run of .*save_packed"),
        ("notebooks/networks/cifar10-w2a2-w8a8.safetensors", {"split": "train"}, "--split=train"),
    ],
)
def test_what_is_not_evaluated(source, more, message):
    with pytest.raises(ValueError, match=message):
        evaluate_command(str(ROOT / source), **{"split": "validation", **more})


def test_images_of_another_shape(digits_study):
    """A mean over all pixels would take them too."""
    path = str(ROOT / "notebooks/networks/cifar10-w2a2-w8a8.safetensors")
    own = {"dataset": "digits", "data_dir": str(digits_study.parent / "data")}
    with pytest.raises(ValueError, match=r"digits are \(8, 8, 1\): expected \(32, 32, 3\)"):
        evaluate_command(path, split="test", **own)

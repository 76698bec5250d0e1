"""The commands around engines: what they write is checked in the engine, and said as it is."""

import re
import shutil
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from dual_precision.deploy import inspect_packed
from dual_precision.deploy.export.onnx.file import EngineNetwork
from dual_precision.deploy.export.onnx.floats import save_float_onnx
from experiments.benchmark import batch_sizes, engines
from experiments.benchmark.engine_networks import pack_checkpoint
from experiments.benchmark.nibble_speed import bytes_lines
from experiments.deploy import exporting, pack
from experiments.deploy.exporting import export_command
from experiments.deploy.support import Subject, onnx_of, subjects, support_rows
from experiments.deploy.trials import trial_of

pytest.importorskip("onnxruntime")
pytest.importorskip("flatbuffers")

FILES = Path(__file__).parents[1] / "deploy" / "pytorch"


@pytest.fixture(scope="module")
def packed(two_phase_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "digits.safetensors"
    pack.pack_run(two_phase_run, path)
    return path


@pytest.fixture
def folder(digits_study):
    return str(digits_study.parent / "data")


@pytest.mark.parametrize(("target", "form"), [("stablehlo", None), ("onnx", "exact")])
def test_an_export_answers_as_the_file(packed, folder, target, form, tmp_path, capsys):
    out = tmp_path / "net"
    export_command(str(packed), target=target, form=form, out=str(out), data_dir=folder)
    said = capsys.readouterr().out
    rows = re.findall(r"^\| +(low|high) \| +([\d.e-]+) \| +([\d.]+) \|", said, re.MULTILINE)
    assert [row[0] for row in rows] == ["low", "high"]
    assert all(float(same) > 99 for _, _, same in rows)
    assert f"{out.stat().st_size:,} bytes" in said


def test_the_integer_form_of_one_mode(packed, folder, tmp_path, capsys):
    how = {"target": "onnx", "form": "integer", "precision": "high", "data_dir": folder}
    export_command(str(packed), **how, out=str(tmp_path / "net.onnx"))
    (same,) = re.findall(r"^\| +high \| +[\d.e-]+ \| +([\d.]+) \|", capsys.readouterr().out, re.M)
    assert float(same) > 98


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"target": "tflite"}, "target 'tflite' is unknown: expected one of"),
        ({"target": "litert"}, "--target=litert writes one mode: give --precision, one of"),
        ({"target": "onnx", "form": "int4"}, "form 'int4' is unknown"),
        ({"target": "stablehlo", "form": "exact"}, "--form=exact has no effect on --target=stab"),
        (
            {"target": "onnx", "form": "integer", "precision": "low"},
            r"'integer' has no effect on \['low",
        ),
        (
            {"target": "onnx", "form": "vnni", "precision": "low"},
            "expected a mode of 8-bit activations",
        ),
        (
            {"target": "onnx", "form": "nibbles", "precision": "low"},
            "with large matrices of 4 or 8 bits",
        ),
        ({"target": "gguf"}, "--target=gguf writes one mode: give --precision, one of"),
        (
            {"target": "nnp", "precision": "low"},
            "--nnabla=None and --target=nnp: expected the python",
        ),
        ({"target": "onnx", "nnabla": "python"}, "--nnabla=python and --target=onnx: expected"),
        ({"target": "onnx", "precision": "float"}, r"precisions \['float'\]: expected some of"),
    ],
)
def test_exports_that_are_none(packed, folder, flags, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_command(str(packed), **flags, out=str(tmp_path / "net"), data_dir=folder)


def test_an_engine_that_answers_otherwise(packed, folder, tmp_path, monkeypatch):
    def export(answer):
        monkeypatch.setattr(exporting, "export_to", lambda *_: answer)
        (tmp_path / "net").write_bytes(b"a file")
        how = {"target": "onnx", "precision": "high", "data_dir": folder}
        export_command(str(packed), **how, out=str(tmp_path / "net"))

    def zeros(images, precision):
        return np.zeros((len(images), 10), np.float32)

    with pytest.raises(ValueError, match="answers otherwise than mode 'high': the same on"):
        export(zeros)
    with pytest.raises(ValueError, match="not finite: expected finite"):
        export(lambda *given, **named: zeros(*given, **named) * np.nan)
    with pytest.raises(ValueError, match=r"the engine gives \[\d+, 9\]: expected finite"):
        export(lambda *given, **named: zeros(*given, **named)[:, :9])


def test_a_row_says_what_runs_and_why_another_does_not(packed, folder, tmp_path):
    trial = trial_of(inspect_packed(packed), 64, part="test", data_dir=folder)
    rows = list(support_rows(Subject("digits", packed, True, trial), tmp_path))
    assert len(rows) == 8
    for row in rows:
        if (row["mode"], row["target"]) == ("low", onnx_of("integer")):
            assert row["works"] == "no"
            assert "not 8-bit activations" in row["reason"]
        elif row["works"] == "no":  # the extra is in few environments
            assert "needs the package 'litert_converter', which is not installed" in row["reason"]
        else:
            assert row["works"] == "yes"
            assert row["agree"] > 98
            assert abs(row["score"] - row["ours"]) < 1


def test_networks_of_one_kind_are_told_apart_by_their_files(packed, folder, tmp_path):
    files = [shutil.copy(packed, tmp_path / f"{name}.safetensors") for name in ("one", "w4-two")]
    found = list(subjects([Path(file) for file in files], tmp_path, folder, fresh=False))
    assert [subject.name for subject in found] == ["one", "w4-two"]
    assert not any(subject.nibbles for subject in found), "whatever a file is called"


def test_a_float_checkpoint_is_packed_without_training(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
    mean, std = (0.5,) * 3, (0.25,) * 3
    out = tmp_path / "net"
    model, variables = pack_checkpoint(FILES / "both.pt", out, images, mean, std)
    assert [*inspect_packed(out).bytes_read] == ["low", "high"]
    logits = {
        mode: np.asarray(jax.jit(partial(model.apply, precision=mode))(variables, images))
        for mode in ("float", "high", "low")
    }
    far = {mode: np.abs(logits[mode] - logits["float"]).max() for mode in ("high", "low")}
    assert far["high"] < far["low"]
    assert far["high"] < 0.2 * np.abs(logits["float"]).max()


def test_accuracies_are_judged_against_jax_and_the_engine_itself():
    shares = {engines.HIGH: 91.0, engines.JAX_HIGH: 91.25, engines.STATIC: 91.05}
    rows = [{"program": name, "accuracy": value} for name, value in shares.items()]
    to_jax, to_static = engines.accuracy_lines(rows)
    assert "-0.25 points" in to_jax
    assert to_jax.endswith("short")
    assert "-0.05 points" in to_static
    assert to_static.endswith("PASS")


def test_batches_of_each_size_are_timed_beside_the_engine(tmp_path, monkeypatch):
    monkeypatch.setattr(batch_sizes, "SIZES", (1, 2))
    monkeypatch.setattr(batch_sizes, "BARS", {1: (0.8, 1.2)})
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
    packed, graph = tmp_path / "net", tmp_path / "float.onnx"
    model, variables = pack_checkpoint(FILES / "both.pt", packed, images, (0.5,) * 3, (0.25,) * 3)
    save_float_onnx(graph, model, variables, jax.ShapeDtypeStruct((8, 8, 3), np.uint8))
    engine = {"an engine": EngineNetwork(graph)}
    rows, lines = batch_sizes.measure_batch_sizes(packed, engine, images, (1, 2))
    assert [row["program"] for row in rows] == [
        *engine, "our Predictor, high", "our Predictor, low"
    ]  # fmt: skip
    assert all({"images_1", "images_2"} <= row.keys() for row in rows)
    assert len(lines) == 2  # a bar for each mode, of one image


def test_bytes_of_both_modes_are_said_as_they_are():
    lines = bytes_lines({"low": 10, "high": 20, "both": 20, "apart": 30})
    assert "both modes in one file against high alone: 1.000 x" in lines[0]
    assert lines[0].endswith("PASS, goal met; as two sessions 1.500 x")

"""Networks read back, and started from: what is taken over, what it means, what is refused."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

from dual_precision import load
from dual_precision.deploy import inspect_packed, load_packed, save_packed
from dual_precision.loading import load_trained, save_floats, start_from
from dual_precision.models import build_from
from dual_precision.precision import modes
from dual_precision.primitives.nested import encode
from dual_precision.structure import Structure, structure_of
from dual_precision.tasks.classification import Classification
from dual_precision.tasks.language import NextByte
from dual_precision.training.checkpoint import Checkpoints
from dual_precision.training.reading import CheckpointError

EXAMPLE = Classification((4, 4, 1)).example
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 1), np.uint8)
TWO_CHANNELS = Classification((4, 4, 2)).example
BOTH = ("low", "high")


def network_of(**widths: Any) -> dict[str, Any]:
    """The description of a small network."""
    return {"name": "mlp", "num_classes": 3, "hidden": [8, 8], **modes(**widths).to_json()}


def variables_of(network: dict[str, Any], seed: int = 0, example: Any = EXAMPLE) -> dict[str, Any]:
    """Variables in which every number is another one, those of each mode too."""
    generator = np.random.default_rng(seed)
    least = {"kernel": -1.0, "step": 0.01}  # kernels have both signs; steps are a part of them

    def numbers(path: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray:
        bottom = least.get(path[-1], 0.1)
        return generator.uniform(bottom, 0.1 if path[-1] == "step" else 1, shape).astype(np.float32)

    shapes = structure_of(build_from(network), example).shapes
    return unflatten_dict({path: numbers(path, leaf.shape) for path, leaf in shapes.items()})


def save_run(
    workdir: Path,
    network: dict[str, Any],
    trained: tuple[str, ...] = BOTH,
    example: Any = EXAMPLE,
) -> Any:
    """A workdir with one checkpoint of variables as above, which are returned."""
    variables = variables_of(network, example=example)
    state = {"step": np.int32(7), **variables, "carry": {}, "opt_state": ()}
    config = {"network": network, "trained": list(trained)}
    with Checkpoints(workdir, config) as checkpoints:
        checkpoints.save(7, state, {"phase": 0}, score=0.5)
    return variables


def started(source: Path, network: dict[str, Any]) -> tuple[dict, list[str], Structure]:
    """A network started from a source: its leaves, what does not fit, and its structure."""
    model = build_from(network)
    structure = structure_of(model, EXAMPLE)
    fresh = variables_of(network, seed=1)
    variables, notes = start_from(load_trained(source, EXAMPLE), fresh, structure)
    assert jax.tree.structure(variables) == jax.tree.structure(fresh)
    return dict(flatten_dict(variables)), notes, structure


def codes_of(leaves: dict, structure: Structure) -> dict:
    """(layer, mode) -> the codes that it reads."""
    return {
        (path, mode): np.asarray(
            encode(
                leaves["params", *path, "kernel"],
                leaves["params", *path, "step"],
                layer.table[mode].weight_bits,
                layer.stored,
            )
        )
        for path, layer in structure.layers.items()
        for mode in BOTH
    }


# -- from a workdir --------------------------------------------------------------------------------


@pytest.mark.parametrize(("then", "now"), [(4, 8), (8, 4), (5, 7)])
def test_under_another_stored_width_every_code_stays(tmp_path, then, now):
    """Those of the first and the last layer too, which are stored with 8 bits in both."""
    before = network_of(low="w2a2", high="w4a4", stored=then)
    saved = flatten_dict(save_run(tmp_path, before))
    leaves, notes, structure = started(tmp_path, network_of(low="w2a2", high="w4a4", stored=now))
    assert not notes
    stored = {layer.stored for layer in structure.layers.values()}
    assert stored == {now, 8}, "both kinds of layers are here"
    old = codes_of(saved, structure_of(build_from(before), EXAMPLE))
    new = codes_of(leaves, structure)
    assert old.keys() == new.keys()
    for key, codes in old.items():
        np.testing.assert_array_equal(codes, new[key], err_msg=str(key))


def test_every_mode_starts_from_the_float_normalisation(tmp_path):
    network = network_of(low="w2a2", high="w8a8")
    saved = flatten_dict(save_run(tmp_path, network, trained=("float",)))
    leaves, notes, structure = started(tmp_path, network)
    assert not notes
    for path in structure.norms:
        for leaf in [leaf for leaf in leaves if leaf[1 : len(path) + 1] == path]:
            collection, *_, mode, name = leaf
            source = (collection, *path, "float", name)
            np.testing.assert_array_equal(leaves[leaf], saved[source], err_msg=mode)
    for path in structure.layers:
        kernel = "params", *path, "kernel"
        np.testing.assert_array_equal(leaves[kernel], saved[kernel])


def test_a_mode_that_was_not_trained_takes_the_normalisation_of_one_that_was(tmp_path):
    """And no input steps: they belong to a width."""
    network = network_of(low="w2a2", high="w8a8")
    saved = flatten_dict(save_run(tmp_path, network, trained=("high",)))
    leaves, notes, _ = started(tmp_path, network)
    assert not notes
    fresh = flatten_dict(variables_of(network, seed=1))
    steps = "params", "dense2", "input_step"
    np.testing.assert_array_equal(leaves[*steps, "high"], saved[*steps, "high"])
    np.testing.assert_array_equal(leaves[*steps, "low"], fresh[*steps, "low"])
    for mode in ("float", *BOTH):
        where = "params", "norm1", mode, "scale"
        np.testing.assert_array_equal(leaves[where], saved["params", "norm1", "high", "scale"])


def test_a_packed_twin_says_which_mode_was_trained(tmp_path):
    """What starts from it is what starts from its run."""
    network, path = network_of(low="w2a2", high="w8a8"), tmp_path / "twin.safetensors"
    saved = variables_of(network)
    save_packed(path, build_from(network), saved, network, EXAMPLE, {"trained": ["high"]})
    found = load_trained(path, EXAMPLE)
    assert found.modes == ("high",)
    leaves, _, _ = started(path, network)
    np.testing.assert_array_equal(
        leaves["batch_stats", "norm1", "low", "mean"], saved["batch_stats"]["norm1"]["high"]["mean"]
    )


def test_a_packed_file_of_no_trained_mode_starts_nothing(tmp_path):
    """Of a float run: its named modes have the normalisations of the beginning."""
    network, path = network_of(low="w2a2", high="w8a8"), tmp_path / "net.safetensors"
    about = {"trained": ["float"]}
    save_packed(path, build_from(network), variables_of(network), network, EXAMPLE, about)
    assert inspect_packed(path).trained == ()
    with pytest.raises(ValueError, match=r"holds \['low', 'high'\], and its run trained none"):
        load_trained(path, EXAMPLE)


def test_modes_that_were_trained_keep_what_is_theirs(tmp_path):
    network = network_of(low="w2a2", high="w8a8")
    saved = flatten_dict(save_run(tmp_path, network))
    leaves, notes, _ = started(tmp_path, network)
    assert not notes
    own = [leaf for leaf in leaves if "float" not in leaf]
    assert len(own) > len(leaves) / 2
    for leaf in own:
        np.testing.assert_array_equal(leaves[leaf], saved[leaf], err_msg=str(leaf))


def test_a_network_of_other_inputs(tmp_path):
    two = {"mean": [0.5, 0.5], "std": [0.2, 0.2]}
    save_run(tmp_path, network_of(low="w2a2", high="w8a8") | two, example=TWO_CHANNELS)
    colours = Classification((4, 4, 3)).example
    with pytest.raises(ValueError, match="takes other inputs than the new network: images of 3 c"):
        load_trained(tmp_path, colours)


def test_a_packed_file_gives_the_codes_and_what_each_mode_computes(tmp_path):
    """Under another stored width too; its float mode is none, and starts from the widest."""
    network = network_of(low="w2a2", high="w4a4", stored=4)
    model, saved = build_from(network), variables_of(network)
    path = tmp_path / "net.safetensors"
    save_packed(path, model, saved, network, EXAMPLE)
    now = network_of(low="w2a2", high="w4a4", stored=8)
    leaves, notes, structure = started(path, now)
    assert not notes
    old = codes_of(flatten_dict(saved), structure_of(model, EXAMPLE))
    for key, codes in codes_of(leaves, structure).items():
        np.testing.assert_array_equal(codes, old[key], err_msg=str(key))
    _, packed = load_packed(path)
    for mode in BOTH:
        expected = model.apply(packed, IMAGES, precision=mode)
        logits = build_from(now).apply(unflatten_dict(leaves), IMAGES, precision=mode)
        np.testing.assert_array_equal(logits, expected)


# -- from a file of floats -------------------------------------------------------------------------


@pytest.fixture
def floats(tmp_path) -> Path:
    """A safetensors file of the float network in variables as above."""
    network = network_of(low="w2a2", high="w8a8")
    path = tmp_path / "floats.safetensors"
    save_floats(path, variables_of(network), structure_of(build_from(network), EXAMPLE))
    return path


def change(path: Path, **arrays: np.ndarray | None) -> None:
    """Writes the file again with other arrays under some names; None leaves one out."""
    changed = {**load_file(path), **{name.replace("__", "/"): a for name, a in arrays.items()}}
    save_file({name: array for name, array in changed.items() if array is not None}, path)


def test_floats_come_back_bit_for_bit(floats):
    network = network_of(low="w2a2", high="w8a8")
    saved = variables_of(network)
    leaves, notes, structure = started(floats, network)
    assert not notes
    read = unflatten_dict(leaves)
    logits = [
        build_from(network).apply(variables, IMAGES, precision="float")
        for variables in (saved, read)
    ]
    np.testing.assert_array_equal(*logits)
    again = floats.with_name("again.safetensors")
    save_floats(again, read, structure)
    first, second = load_file(floats), load_file(again)
    assert first.keys() == second.keys()
    assert "norm1/mean" in first
    assert "classifier/kernel" in first
    for name, array in first.items():
        assert array.tobytes() == second[name].tobytes(), name


def test_normalisations_of_texts_come_back(tmp_path):
    """They have a scale alone, no mean."""
    example, path = NextByte(4).example, tmp_path / "text.safetensors"
    network = {
        "name": "transformer", "features": 8, "depth": 1, "heads": 2, "context": 4,
        **modes(low="w2a8", high="w8a8").to_json(),
    }  # fmt: skip
    structure = structure_of(build_from(network), example)
    saved = variables_of(network, example=example)
    save_floats(path, saved, structure)
    fresh = variables_of(network, seed=1, example=example)
    variables, notes = start_from(load_trained(path, example), fresh, structure)
    assert not notes
    before, after = (flatten_dict(own) for own in (saved, variables))
    norm = ("params", "block1", "norm1", "float", "scale")
    np.testing.assert_array_equal(after[norm], before[norm])


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("dense2/step", r"'dense2/step' is a step of a quantizer: expected float parameters"),
        ("dense2/input_step/low", r"'dense2/input_step/low' is a step of a quantizer"),
        ("dense2/kernel/part", r"'dense2/kernel/part' is below 'dense2/kernel', which is a tensor"),
    ],
)
def test_names_that_no_file_of_floats_has(floats, name, says):
    change(floats, **{name: np.ones(8, np.float32)})
    with pytest.raises(ValueError, match=rf"floats\.safetensors: {says}"):
        load_trained(floats, EXAMPLE)


def test_what_does_not_fit_is_listed(floats):
    change(
        floats,
        dense2__kernel=np.zeros((8, 9), np.float32),
        norm2__scale=None,
        extra__kernel=np.zeros((2, 2), np.float32),
    )
    leaves, notes, _ = started(floats, network_of(low="w2a2", high="w8a8"))
    assert "params/dense2/kernel: [8, 9] there, [8, 8] here, starts fresh" in notes
    missing = [note for note in notes if note.endswith(": missing there, starts fresh")]
    assert missing == [
        f"params/norm2/{mode}/scale: missing there, starts fresh"
        for mode in ("float", "high", "low")
    ]
    assert "params/extra/kernel: only there, left out" in notes
    assert len(notes) == 5
    assert leaves["params", "dense2", "kernel"].shape == (8, 8)


@pytest.mark.parametrize("name", ["head", "classifier"], ids=["other name", "other shape"])
def test_nothing_that_fits(tmp_path, name):
    path = tmp_path / "other.safetensors"
    save_file({f"{name}/kernel": np.zeros((2, 2), np.float32)}, path)
    with pytest.raises(ValueError, match=r"no kernel of that network fits this one.*'classifier'"):
        started(path, network_of(low="w2a2", high="w8a8"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number(floats, value):
    change(floats, dense2__kernel=np.full((8, 8), value, np.float32))
    with pytest.raises(ValueError, match="params/dense2/kernel: infinities or NaN there"):
        started(floats, network_of(low="w2a2", high="w8a8"))


def test_files_that_are_something_else(floats, tmp_path):
    change(floats, dense2__kernel=np.zeros((8, 8), np.float16))
    with pytest.raises(ValueError, match=r"'dense2/kernel' is float16: expected float32"):
        load_trained(floats, EXAMPLE)
    text = tmp_path / "notes.txt"
    text.write_text("nothing of that kind")
    with pytest.raises(
        ValueError, match=r"not a workdir, a packed file, a file of torch\.save or a safet"
    ):
        load_trained(text, EXAMPLE)
    with pytest.raises(OSError, match=r"gone\.safetensors"):
        load_trained(tmp_path / "gone.safetensors", EXAMPLE)


def test_a_checkpoint_under_another_number_is_not_believed(tmp_path):
    network = network_of(low="w2a2", high="w8a8")
    save_run(tmp_path, network)
    (tmp_path / "checkpoints" / "7").rename(tmp_path / "checkpoints" / "9")
    for step in ("latest", 9):
        with pytest.raises(CheckpointError, match=r"step 9: its folder holds the .* of step 7"):
            load(tmp_path, step)
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be read"):
        load(tmp_path, "best")


def test_a_file_is_no_workdir(tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"is a file: expected the folder of a run; .*load_packed"):
        load(path)

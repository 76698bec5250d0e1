"""The damage command: nothing bad in a few cases, and what is bad is seen."""

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from dual_precision.data.provision.png import decode_png, encode_png
from dual_precision.deploy import PackedError, amend_metadata, inspect_packed, load_packed
from experiments.benchmark.reliability import damage, damage_child
from experiments.benchmark.reliability.changes import (
    DEEP,
    changed_bytes,
    changed_json,
    forged_packed,
    forged_png,
    nested_text,
)
from experiments.benchmark.reliability.damage_ways import save_tiny_packed
from experiments.deploy.cascade_evaluation import cascade_settings
from experiments.recipes.config import config_from

ROOT = Path(__file__).parents[2]


def generator(number: int = 0) -> np.random.Generator:
    return np.random.default_rng(number)


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("damage") / "net.safetensors"
    save_tiny_packed(path)
    return path.read_bytes()


def test_a_few_cases_of_every_kind(monkeypatch, capsys):
    """The real command, but small: a child opens the files."""
    monkeypatch.chdir(ROOT)
    damage.measure_damage(cases=15, seed=0)
    *kinds, last = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in kinds] == list(damage.KINDS)
    assert last == "15 cases, seed 0: none of wrong, crash, slow, large"


def test_what_is_bad_is_an_error(monkeypatch):
    found = [("bytes", 0, "right", ""), ("json", 3, "wrong", "on purpose")]
    printed = []

    def outcomes(folder, cases, seed):
        (folder / "errors").write_text("\n".join(printed))
        return iter(found)

    monkeypatch.setattr(damage, "outcomes", outcomes)
    with pytest.raises(ValueError, match=r"1 of 2 cases of seed 5.*json case 3: wrong, on purpose"):
        damage.measure_damage(cases=2, seed=5)
    found.pop()
    damage.measure_damage(cases=1, seed=5)
    printed.append("Traceback (most recent call last):")
    with pytest.raises(ValueError, match="1 tracebacks were printed"):
        damage.measure_damage(cases=1, seed=5)


def test_outcomes_of_a_child():
    def refuse():
        raise ValueError("what is wrong with it")

    def crash():
        raise TypeError("nobody expected that")

    assert damage_child.judged(lambda: "right") == ("right", "")
    assert damage_child.judged(refuse) == ("refused", "what is wrong with it")
    assert damage_child.judged(crash) == ("crash", "TypeError: nobody expected that")


def test_a_child_that_takes_much_memory_or_time(monkeypatch):
    monkeypatch.setattr(damage_child, "LARGEST_GROWTH", -(1 << 40))
    assert damage_child.judged(lambda: "right")[0] == "large"
    monkeypatch.setattr(damage_child, "SECONDS", -1.0)
    assert damage_child.judged(lambda: "right")[0] == "slow"


def test_a_child_that_ends_is_a_crash(monkeypatch, tmp_path):
    """And the next one goes on behind the case that ended it."""

    class Dying(damage.Child):
        def __init__(self, folder, cases, seed, first):
            self.lines = ["ready", '["right", ""]', None] if first == 0 else ["ready", '["ok", ""]']

        def __exit__(self, *_):
            pass

        def next_line(self, seconds):
            return self.lines.pop(0)

        def why(self):
            return "crash", "exit status -6"

    monkeypatch.setattr(damage, "Child", Dying)
    found = [outcome[1:3] for outcome in damage.outcomes(tmp_path, 3, 0)]
    assert found == [(0, "right"), (1, "crash"), (2, "ok")]


def test_everything_follows_from_the_seed(packed):
    raw, value = bytes(range(200)), {"a": [1, {"b": 2}], "c": "d"}
    for number in range(5):
        assert changed_bytes(raw, generator(number)) == changed_bytes(raw, generator(number))
        assert forged_packed(packed, generator(number)) == forged_packed(packed, generator(number))
        now, again = (changed_json(value, generator(number)) for _ in range(2))
        assert repr(now) == repr(again)
        assert now != value
    assert value == {"a": [1, {"b": 2}], "c": "d"}, "the original is as it was"


def test_a_forged_header_has_the_right_checksum(packed, tmp_path):
    """Else only the checksum would be tested."""
    said = []
    for number in range(40):
        path = tmp_path / "forged.safetensors"
        path.write_bytes(forged_packed(packed, generator(number)))
        try:
            load_packed(path)
        except PackedError as error:
            said.append(str(error))
    assert said
    assert not [line for line in said if "does not match its checksum" in line]


def test_a_nest_stands_in_json_and_in_a_text_of_json():
    for text in (json.dumps([DEEP]), json.dumps({"a": json.dumps([DEEP])})):
        deep = nested_text(text, generator())
        assert DEEP not in deep
        assert "[[[[" in deep


# -- what the suite found --------------------------------------------------------------------------


def test_a_png_with_other_pixels_is_noticed():
    """Pillow compares no checksum of the pixels."""
    pixels = generator().integers(0, 256, (8, 8, 3), dtype=np.uint8)
    png = encode_png(pixels)
    np.testing.assert_array_equal(decode_png(png, pixels.shape), pixels)
    for at in range(len(png)):
        other = bytearray(png)
        other[at] ^= 4
        with pytest.raises(ValueError, match="PNG"):
            decode_png(bytes(other), pixels.shape)
    for end in range(len(png)):
        with pytest.raises(ValueError, match="PNG"):
            decode_png(png[:end], pixels.shape)


def test_a_png_that_claims_to_be_huge_is_refused_before_it_is_made():
    png = encode_png(np.zeros((8, 8, 3), np.uint8))
    header = struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    huge = png[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[33:]
    with pytest.raises(ValueError, match="expected 8x8, RGB of 8 bits; resize"):
        decode_png(huge, (8, 8, 3))
    with pytest.raises(
        ValueError, match=r"8x8 pixels .*, RGB of 8 bits: expected 8x8, grey of 8 bits; .*convert"
    ):
        decode_png(png, (8, 8, 1))


@pytest.mark.parametrize("number", range(20))
def test_a_forged_png_has_right_checksums(number):
    png = encode_png(np.zeros((8, 8, 1), np.uint8))
    said = ""
    try:
        decode_png(forged_png(png, generator(number)), (8, 8, 1))
    except ValueError as error:
        said = str(error)
    assert "checksum" not in said


@pytest.mark.parametrize("run", [[], "x", True, {"experiment": 3}, {"experiment": {"dataset": 3}}])
def test_a_file_that_says_something_odd_of_its_run(packed, tmp_path, run):
    path = tmp_path / "net.safetensors"
    path.write_bytes(packed)
    amend_metadata(path, {"run": run})
    with pytest.raises(ValueError, match="does not say on what it was trained"):
        cascade_settings(inspect_packed(path))


def test_fields_of_a_config_have_their_types():
    assert config_from({"passes": 3}).recipe.passes == 3, "a float can be whole"
    for wrong in ({"seed": "x"}, {"batch_size": True}, {"mode": []}, {"passes": None}, {"low": 2}):
        (name,) = wrong
        with pytest.raises(ValueError, match=f"{name}=.*expected a value of type"):
            config_from(wrong)

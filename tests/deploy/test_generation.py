"""Generation: drafted text is the text of the high mode, byte for byte, however it is asked for."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dual_precision import Widths, modes
from dual_precision.deploy import save_packed
from dual_precision.deploy.generation.drafting import MEASURED, Adaptive, DraftCosts, costs_for
from dual_precision.deploy.generation.generator import Generator, Tally
from dual_precision.deploy.generation.programs import FILLED, ROUNDS, Choice, rounds_of_drafts
from dual_precision.deploy.planes.mode_layers import ModeLayer, XlaModeLayer, to_plane_layers
from dual_precision.models import build
from dual_precision.primitives.native import decoder

EXAMPLE = jax.ShapeDtypeStruct((64,), jnp.uint8)
NETWORK = {
    "name": "transformer",
    "features": 16,
    "depth": 1,
    "heads": 2,
    "hidden": 32,
    "context": 64,
    **modes(low="w2a8", high="w8a8").to_json(),
}
RNG = np.random.default_rng(0)
FORMS = {"kernel": ModeLayer, "xla": XlaModeLayer}


def text(length: int) -> bytes:
    return RNG.integers(0, 256, length, np.uint8).tobytes()


@cache
def network():
    own = {name: value for name, value in NETWORK.items() if name not in modes().to_json()}
    model = build(**own, modes=modes(low="w2a8", high="w8a8"))
    init = jax.jit(lambda key: model.init(key, jnp.zeros((1, 8), jnp.uint8), precision="high"))
    return model, init(jax.random.key(0))


@cache
def generator(form: str = "kernel") -> Generator:
    return Generator.of(*network(), EXAMPLE, FORMS[form])


@cache
def alone(form: str, prompts: tuple[bytes, ...], temperature: float) -> list[bytes]:
    """Each text by itself, so that its number among the prompts is 0."""
    how = {"precision": "high", "temperature": temperature}
    return [generator(form).generate([prompt], 12, **how)[0] for prompt in prompts]


# Lengths on both sides of the edges of what a pass fills: one byte is fed by the first step.
EDGES = (1, 2, FILLED, FILLED + 1, FILLED + 2, 17, 40)
PROMPTS = tuple(text(length) for length in EDGES)


@pytest.mark.parametrize("drafts", range(1, 8))
def test_drafts_change_nothing(drafts):
    """Batches of one to four, of prompts of all these lengths."""
    rows = (drafts - 1) % 4 + 1
    own = (*PROMPTS[drafts - 1 :], *PROMPTS)[:rows]
    for prompts in (own, own[::-1]):
        found = generator().generate(prompts, 12, drafts=drafts)
        assert found == alone("kernel", prompts, 0.0)


def test_nor_where_rounds_and_plain_bytes_take_turns():
    """To the end of the context."""
    own, prompts = generator(), PROMPTS[:3]
    count, tally = own.context - max(map(len, prompts)), Tally()
    costs = DraftCosts((2.2, 2.3, 2.4, 2.5, 2.6, 2.7, 2.8))  # pays where most drafts agree
    found = own.generate(prompts, count, costs=costs, tally=tally)
    assert found == own.generate(prompts, count, precision="high")
    assert 0 < tally.rounds < tally.passes


def test_nor_do_they_where_bytes_are_drawn():
    how = {"temperature": 1.0, "seed": 3}
    expected = generator().generate(PROMPTS[:3], 12, precision="high", **how)
    tally = Tally()
    assert generator().generate(PROMPTS[:3], 12, drafts=3, tally=tally, **how) == expected
    always = DraftCosts([1.0] * 7)
    assert generator().generate(PROMPTS[:3], 12, costs=always, **how) == expected
    assert 0 < tally.kept <= tally.drafted
    assert tally.bytes == 36
    assert generator().generate(PROMPTS[:3], 12, precision="high", temperature=1.0) != expected


def test_nor_do_parts_of_a_stream():
    parts = [*generator().stream(PROMPTS[4], 12, drafts=1)]
    assert all(parts)
    assert [b"".join(parts)] == alone("kernel", PROMPTS[4:5], 0.0)


def test_rounds_of_one_program_are_those_of_several():
    """A text that lacks nothing stands still, and costs no round."""
    own, prompts = generator(), PROMPTS[1:4]
    choice = Choice(jax.random.key(0), jnp.arange(3, dtype=jnp.uint32), jnp.float32(1), greedy=True)

    def rounds(state, left, most):
        found, kept, *after = rounds_of_drafts(
            own.variables, *state, choice, left, np.int32(most),
            model=own.model, drafts=2, low=own.low, high=own.high,
        )  # fmt: skip
        return np.asarray(found), np.asarray(kept), after

    left = np.array([5, 0, 2], np.int32)
    found, kept, (token, cache) = rounds(own.filled(prompts, own.high), left, ROUNDS)
    state, lacks = own.filled(prompts, own.high), left
    before = np.asarray(state[1].length)
    for at in range(ROUNDS):
        one, counts, state = rounds(state, lacks, 1)
        np.testing.assert_array_equal(found[at], one[0])
        np.testing.assert_array_equal(kept[at], counts[0])
        lacks = lacks - counts[0]
    assert not kept[:, 1].any()
    assert (kept.sum(0) >= left).all()
    np.testing.assert_array_equal(token, state[0])
    np.testing.assert_array_equal(cache.length, before + kept.sum(0))


def test_nor_without_the_kernel(monkeypatch):
    monkeypatch.setattr(decoder, "available", lambda: False)
    expected = alone("xla", PROMPTS[3:4], 0.0)  # one text: compiling is what takes the time
    assert generator("xla").generate(PROMPTS[3:4], 12, drafts=3) == expected


def test_products_on_planes_are_those_of_training():
    model, variables = network()
    layered, planes = to_plane_layers(model, variables, EXAMPLE)
    tokens = jnp.asarray(RNG.integers(0, 256, (2, 9)), jnp.uint8)
    for asked in ("low", Widths("high", weights=4)):
        expected = jax.jit(lambda v, a=asked: model.apply(v, tokens, precision=a))(variables)
        found = jax.jit(lambda v, a=asked: layered.apply(v, tokens, precision=a))(planes)
        # A code may fall on the other side of its edge by a rounding of what lies between.
        assert np.corrcoef(np.ravel(found), np.ravel(expected))[0, 1] > 0.999
        assert np.median(np.abs(found - expected)) < 1e-3


def test_from_a_packed_file_in_parts(tmp_path):
    model, variables = network()
    save_packed(tmp_path / "net.safetensors", model, variables, NETWORK, EXAMPLE)
    own = Generator(tmp_path / "net.safetensors")
    assert (own.low, own.high) == ("low", "high")
    parts = [*own.stream(PROMPTS[4], 12, precision="high")]
    assert [len(part) for part in parts] == [8, 4]
    assert [b"".join(parts)] == alone("kernel", PROMPTS[4:5], 0.0)


def test_a_mode_that_was_not_trained_neither_drafts_nor_decides(tmp_path):
    path = tmp_path / "net.safetensors"
    save_packed(path, *network(), NETWORK, EXAMPLE, {"trained": ["high"]})
    own = Generator(path)
    assert (own.low, own.high) == ("high", "high")


@pytest.mark.parametrize(("texts", "drafts"), [(1, True), (2, False)])
def test_one_text_alone_is_drafted_by_costs_that_were_measured_of_one(texts, drafts, monkeypatch):
    own, tally = generator(), Tally()
    monkeypatch.setattr(own, "costs", DraftCosts([1.0] * 7))
    own.generate(PROMPTS[:texts], 12, tally=tally)
    assert (tally.rounds > 0) == drafts


def test_drafts_that_do_not_pay_are_left():
    rule = Adaptive(costs_for(114_000_000), agreement=0.95)
    assert rule.drafts() > 1
    for _ in range(40):
        rule.saw(1, [0])
    assert [rule.drafts() for _ in range(9)] == [0] * 8 + [1]
    for _ in range(80):
        rule.saw(7, [7])
    assert rule.drafts() == 7


def test_costs_of_a_size_lie_between_those_that_were_measured():
    small, middle, large = MEASURED.values()
    found = costs_for(40_000_000)
    for own, *ends in zip(found.rounds, middle.rounds, large.rounds, strict=True):
        assert min(ends) <= own <= max(ends)
    assert generator().costs == small


@pytest.mark.parametrize(
    ("prompts", "how", "message"),
    [
        ([], {}, "expected one or more"),
        (b"text", {}, "expected one or more"),
        ([b""], {}, "expected bytes, one or more"),
        (["text"], {}, "expected bytes"),
        ([b"x" * 60], {}, "60 bytes and 12 to follow"),
        ([b"x"], {"drafts": 0}, "drafts=0: expected a whole number from 1 to 7"),
        ([b"x"], {"drafts": 8}, "drafts=8: expected a whole number from 1 to 7"),
        ([b"x"], {"precision": "middle"}, "precision 'middle' of a generation: expected 'draft'"),
        (
            [b"x"],
            {"precision": "float"},
            r"one of \['low', 'high'\], the modes of codes",
        ),
        ([b"x"], {"precision": Widths("float")}, "precision 'float' of a generation"),
        ([b"x"], {"precision": Widths("high", weights=0)}, "weights=0 .* whole number from 1 to 8"),
        ([b"x"], {"precision": Widths("high", activations=9)}, "activations=9 .* from 1 to 8"),
        ([b"x"], {"precision": Widths("high", weights={"head": 2})}, "with_layer_widths makes a"),
        ([b"x"], {"precision": Widths("high", kept={"a": 1})}, "expected none of them"),
        ([b"x"], {"precision": "low", "drafts": 2}, "alone reads"),
        ([b"x"], {"temperature": -1.0}, "temperature of -1.0"),
        ([b"x"], {"temperature": 1e-39}, "temperature of 1e-39: expected 1e-30 or more"),
        ([b"x"], {"seed": 3}, "seed=3 at a temperature of 0"),
        ([b"x"], {"temperature": 1.0, "seed": 2**32}, "seed=4294967296: expected 0 to"),
        ([b"x"], {"temperature": 1.0, "seed": -1}, "seed=-1: expected 0 to"),
        ([b"x"], {"count": 5.5}, "count=5.5: expected a whole number"),
        ([b"x"], {"count": True}, "count=True: expected a whole number"),
        ([b"x" * 60], {"count": np.uint8(200)}, "60 bytes and 200 to follow"),
    ],
)
def test_what_cannot_be_generated(prompts, how, message):
    with pytest.raises(ValueError, match=message):
        generator().rounds(prompts, **{"count": 12, **how})


def test_whole_numbers_of_numpy_are_as_those_of_python():
    prompt, eight = PROMPTS[3:4], Widths("high", weights=np.int64(8))
    asked = {"count": np.uint8(12), "drafts": np.int64(2), "temperature": 1e-30, "seed": np.int8(1)}
    assert generator().generate(prompt, **asked) == alone("kernel", prompt, 0.0)
    assert generator().generate(prompt, 12, precision=eight) == alone("kernel", prompt, 0.0)


@pytest.mark.parametrize("context", [3, 16, 40])
def test_a_context_that_a_pass_does_not_fill(context):
    """A prompt is filled in parts of it, a round has no more rows; the text is that of a longer."""
    model, variables = network()
    short = jax.ShapeDtypeStruct((context,), jnp.uint8)
    own = Generator.of(model.clone(context=context), variables, short)
    prompts = [text(context - 2), text(1)]
    expected = generator().generate(prompts, 2, precision="high")
    assert own.generate(prompts, 2, precision="high") == expected
    assert own.generate(prompts, 2, costs=DraftCosts([1.0] * 7)) == expected
    if context == 3:
        with pytest.raises(ValueError, match="drafts=3: expected a whole number from 1 to 2"):
            own.rounds(prompts, 2, drafts=3)


def test_a_stream_is_refused_before_its_first_bytes():
    """Whoever writes the prompt down first would leave it there without a text."""
    with pytest.raises(ValueError, match="expected bytes, one or more"):
        generator().stream(b"", 12)


def test_a_network_that_is_no_decoder():
    model = build("mlp", num_classes=3, modes=modes(low="w2a2"))
    with pytest.raises(ValueError, match="expected a decoder with a cache"):
        Generator.of(model, {}, EXAMPLE)

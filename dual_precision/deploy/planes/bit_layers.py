"""Layers on bit planes: how many planes a product reads is chosen at every call.

    model, variables = dual_precision.load("runs/mnist-float")  # trained in float, or otherwise
    layered, planes = to_bit_layers(model, variables, image_shape=(28, 28, 1))
    layered.apply(planes, images, precision="w4a8")  # 4 planes of every weight, 8-bit activations

No training, no calibration: activations become fixed-point numbers of 8, 16 or 32 bits, scaled by
the largest of each row, and one set of planes serves 1 to 8 bits. This is PrecisionBatching
(Lam et al. 2020, arXiv 2003.00822) on nested planes; see primitives/bitserial.py.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict

from dual_precision.deploy.file.contents import Leaves, Outline, check_shapes, folded_gain, outline
from dual_precision.layers import Dense, SwitchableBatchNorm
from dual_precision.models.mlp import MLP
from dual_precision.precision import FLOAT_NAME
from dual_precision.primitives.bitserial import pack_words, plane_product
from dual_precision.primitives.fixed_point import WIDTHS
from dual_precision.primitives.nested import encode
from dual_precision.primitives.normalization import scale_and_shift
from dual_precision.primitives.plane_fit import fit_planes, plane_scales
from dual_precision.primitives.quantizers import quantize_weights
from dual_precision.structure import Path

STORED = 8
_SPEC = re.compile(r"w(\d+)a(\d+)")


def parse_planes(precision: str) -> tuple[int, int]:
    """ "w4a16" -> (4, 16): planes of the weights, bits of the fixed-point activations.

    >>> parse_planes("w4a16")
    (4, 16)
    """
    match = _SPEC.fullmatch(precision)
    planes, activations = map(int, match.groups()) if match else (0, 0)
    if not 1 <= planes <= STORED or activations not in WIDTHS:
        raise ValueError(
            f"precision {precision!r}: expected w1 to w{STORED} and one of"
            f" {', '.join(f'a{bits}' for bits in WIDTHS)}, as in 'w4a8'"
        )
    return planes, activations


@dataclasses.dataclass(frozen=True)
class AnyPlanes:
    """In the place of a model's `Modes`: every "w1a8" to "w8a32" is a mode, of all layers alike."""

    def check_name(self, name: str) -> None:
        """Raises ValueError where `name` is not such a mode."""
        parse_planes(name)

    def pin(self, weights: int | None, activations: int | None) -> "AnyPlanes":
        """No layer keeps a width of its own."""
        del weights, activations
        return self


class BitDense(nn.Module):
    """`layers.Dense` on planes; x [..., in] -> [..., features]. Its variables: `pack_dense`.

    Attributes:
      modes: which precisions there are.
      form: of `plane_product`; None is the fastest there is.
    """

    features: int
    modes: AnyPlanes = AnyPlanes()
    use_bias: bool = True
    form: str | None = None

    def __call__(self, x: jax.Array, *, precision: str) -> jax.Array:
        self.modes.check_name(precision)
        names = ("words", "scales", "bias")
        own: dict[str, Any] = {name: self.get_variable("params", name) for name in names}
        if own["words"] is None or (self.use_bias and own["bias"] is None):
            raise ValueError(
                f"layer {'/'.join(self.path)!r} has no planes: expected variables that"
                " to_bit_layers, pack_dense or pack_lstm made; there is no init"
            )
        planes, activations = parse_planes(precision)
        rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
        y = plane_product(rows, own["words"], own["scales"], planes, activations, self.form)
        y = y + own["bias"][None] if self.use_bias else y
        return y.reshape(*x.shape[:-1], self.features)


class BitLSTMCell(nn.Module):
    """`nn.OptimizedLSTMCell` on planes: two products, [in, 4H] and [H, 4H]; see `pack_lstm`.

    i, f, g, o = x @ W + h @ U + b;   c = sig(f) c + sig(i) tanh(g);   h = sig(o) tanh(c)

    Called in a `jax.lax.scan` of the caller: `nn.RNN` has no precision to pass on.
    """

    features: int
    form: str | None = None

    def setup(self) -> None:
        self.input = BitDense(4 * self.features, use_bias=False, form=self.form)
        self.hidden = BitDense(4 * self.features, form=self.form)

    def __call__(
        self, carry: tuple[jax.Array, jax.Array], x: jax.Array, *, precision: str
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        """((c, h), x), each [..., features] -> ((c, h), h), as flax's cells do."""
        c, h = carry
        gates = self.input(x, precision=precision) + self.hidden(h, precision=precision)
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
        h = nn.sigmoid(o) * jnp.tanh(c)
        return (c, h), h

    @nn.nowrap
    def initialize_carry(
        self, rng: jax.Array, input_shape: tuple[int, ...]
    ) -> tuple[jax.Array, jax.Array]:
        """(c, h) of zeros for inputs [..., in], as flax's cells give; no randomness is used."""
        del rng
        zeros = jnp.zeros((*input_shape[:-1], self.features), jnp.float32)
        return zeros, zeros


class FixedNorm(nn.Module):
    """x * gain + offset: the normalisation of one mode, for any number of planes."""

    modes: AnyPlanes

    def __call__(self, x: jax.Array, *, precision: str, train: bool = False) -> jax.Array:
        self.modes.check_name(precision)
        if train:
            raise ValueError("bit layers are for inference: train the network they came from")
        gain: Any = self.get_variable("params", "gain")
        offset: Any = self.get_variable("params", "offset")
        return scale_and_shift(x, gain, offset)


def pack_dense(
    kernel: jax.Array, bias: jax.Array | None = None, codes: jax.Array | None = None
) -> dict[str, jax.Array]:
    """The variables of a BitDense from float weights; see `fit_planes`.

    Args:
      kernel: [K, N], float32, finite.
      bias: [N], float32.
      codes: [K, N] of 8 bits, where the weights have them already.

    Returns:
      {"words": uint32 [8, ceil(K / 32), N], "scales": float32 [8, N]}, and "bias" if given.

    Raises:
      ValueError: another shape; an infinity or NaN.
    """
    if codes is None:
        codes, scales = fit_planes(kernel, STORED)
    else:
        scales = plane_scales(kernel, codes, STORED)
    packed = {"words": pack_words(codes, STORED), "scales": scales}
    return packed if bias is None else {**packed, "bias": bias}


def pack_lstm(params: Mapping[str, Any]) -> dict[str, dict[str, jax.Array]]:
    """The variables of a BitLSTMCell from those of flax's LSTMCell or OptimizedLSTMCell."""
    inputs, hidden, bias = join_gates(params)
    return {"input": pack_dense(inputs), "hidden": pack_dense(hidden, bias)}


def join_gates(params: Mapping[str, Any]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Kernels [in, 4H] and [H, 4H] and bias [4H] of flax's LSTM cells, gates i, f, g, o.

    Raises:
      ValueError: parameters of another cell.
    """
    expected = [side + gate for side in "ih" for gate in "ifgo"]
    if sorted(params) != sorted(expected):
        raise ValueError(f"an LSTM cell of {sorted(params)}: expected {expected}, as flax has")
    inputs, hidden = (
        jnp.concatenate([params[side + gate]["kernel"] for gate in "ifgo"], axis=1) for side in "ih"
    )
    return inputs, hidden, jnp.concatenate([params[f"h{gate}"]["bias"] for gate in "ifgo"])


def to_bit_layers(
    model: nn.Module,
    variables: Mapping[str, Any],
    image_shape: tuple[int, ...],
    mode: str = FLOAT_NAME,
) -> tuple[nn.Module, dict[str, Any]]:
    """The same network on planes: (model, variables) whose precisions are "w1a8" to "w8a32".

    Args:
      model: an MLP.
      variables: as `dual_precision.load` gives, or `load_packed` with a `mode` of the file that
        was read.
      image_shape: [H, W, C].
      mode: whose weights and normalisation to take. Planes are fitted to what it computes with;
        only where those are 8-bit codes, the planes are the codes': at 8 planes the weights are
        the mode's own, and at fewer nearer to them than the codes' prefix, by its scale.

    Raises:
      ValueError: another network than an MLP of Dense and SwitchableBatchNorm, or of no norm; no
        such mode, or no values of it in the variables.
    """
    model.modes.check_name(mode)
    if not isinstance(model, MLP):
        raise ValueError(
            f"bit layers of {type(model).__name__}: expected an MLP, whose layers are all Dense;"
            " for convolutions take Predictor"
        )
    if model.dense is not Dense or model.norm not in (SwitchableBatchNorm, None):
        raise ValueError(
            f"bit layers of an MLP of {model.dense} and {model.norm}: expected dense=Dense, and"
            " norm=SwitchableBatchNorm or None, whose equations are known"
        )
    whole = outline(model, image_shape)
    _check_values(dict(flatten_dict(variables)), whole, mode)
    packed = {}
    for (name,), layer in whole.layers.items():
        own = variables["params"][name]
        kernel, bits, codes = own["kernel"], layer.table[mode].weights, None
        if bits is not None and layer.stored is not None:
            if bits == layer.stored == STORED:
                codes = encode(kernel, own["step"], bits, layer.stored)
            kernel = quantize_weights(kernel, own["step"], bits, layer.stored)
        packed[name] = pack_dense(kernel, own.get("bias"), codes)
    for (name,), epsilon in whole.norms.items():
        affine, running = variables["params"][name][mode], variables["batch_stats"][name][mode]
        gain = folded_gain(affine["scale"], running["var"], epsilon)
        packed[name] = {"gain": gain, "offset": affine["bias"] - running["mean"] * gain}
    norm = None if model.norm is None else FixedNorm
    return model.clone(modes=AnyPlanes(), dense=BitDense, norm=norm), {"params": packed}


def _check_values(leaves: Leaves, own: Outline, mode: str) -> None:
    """Raises ValueError unless the leaves hold all that a mode computes with."""
    needed = own.leaves_of([mode])
    if missing := sorted("/".join(path) for path in needed.keys() - leaves.keys()):
        raise ValueError(
            f"variables without {', '.join(missing)}: expected those of precision {mode!r}; load a"
            " checkpoint, or more of the packed file and one of its modes"
        )
    check_shapes({path: leaf for path, leaf in leaves.items() if path in needed}, needed)
    stored = [path for path, layer in own.layers.items() if layer.stored]
    if mode == FLOAT_NAME and stored and all(_are_codes(leaves, path) for path in stored):
        raise ValueError(
            f"variables of a packed file, which holds codes alone: expected latent weights for"
            f" {mode!r}; give mode=, a mode of the file that was read"
        )


def _are_codes(leaves: Leaves, path: Path) -> bool:
    """Whether every weight is the middle of a cell, (c + 1/2) * step * 2^k, as `join` gives."""
    halves = 2 * np.asarray(leaves["params", *path, "kernel"], np.float64)
    halves /= np.asarray(leaves["params", *path, "step"], np.float64)
    return bool(np.all((np.abs(halves - np.rint(halves)) < 1e-3) & (np.rint(halves) != 0)))

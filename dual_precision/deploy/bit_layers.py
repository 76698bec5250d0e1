"""Layers on bit planes: how many planes a product reads is chosen at every call.

    model, variables = dual_precision.load("runs/mnist-float")  # trained in float, or otherwise
    layered, planes = to_bit_layers(model, variables)
    layered.apply(planes, images, precision="w4a8")  # 4 planes of every weight, 8-bit activations

No training, no calibration: activations become fixed-point numbers of 8, 16 or 32 bits, scaled by
the largest of each example, and one set of planes serves 1 to 8 bits. This is PrecisionBatching
(Lam et al. 2020, arXiv 2003.00822) on nested planes; see primitives/bitserial.py.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from dual_precision.describe import describe_layers
from dual_precision.layers import SwitchableBatchNorm
from dual_precision.models.mlp import MLP
from dual_precision.precision import FLOAT_NAME
from dual_precision.primitives.bitserial import pack_words, plane_product
from dual_precision.primitives.fixed_point import WIDTHS
from dual_precision.primitives.nested import encode
from dual_precision.primitives.normalization import scale_and_shift
from dual_precision.primitives.plane_fit import fit_planes, plane_scales
from dual_precision.primitives.quantizers import quantize_weights

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
    """`layers.Dense` on planes; x [B, in] -> [B, features]. Its variables: `pack_dense`.

    Attributes:
      form: of `plane_product`; None is the fastest there is.
    """

    features: int
    modes: AnyPlanes = AnyPlanes()
    use_bias: bool = True
    form: str | None = None

    def __call__(self, x: jax.Array, *, precision: str) -> jax.Array:
        names = ("words", "scales", "bias")
        own: dict[str, Any] = {name: self.get_variable("params", name) for name in names}
        if own["words"] is None or (self.use_bias and own["bias"] is None):
            raise ValueError(
                f"layer {'/'.join(self.path)!r} has no planes: expected variables that"
                " to_bit_layers, pack_dense or pack_lstm made; there is no init"
            )
        planes, activations = parse_planes(precision)
        y = plane_product(x, own["words"], own["scales"], planes, activations, self.form)
        return y + own["bias"][None] if self.use_bias else y


class BitLSTMCell(nn.Module):
    """`nn.OptimizedLSTMCell` on planes: two products, [in, 4H] and [H, 4H]; see `pack_lstm`.

    i, f, g, o = x @ W + h @ U + b;   c = sig(f) c + sig(i) tanh(g);   h = sig(o) tanh(c)
    """

    features: int
    form: str | None = None

    def setup(self) -> None:
        self.input = BitDense(4 * self.features, use_bias=False, form=self.form)
        self.hidden = BitDense(4 * self.features, form=self.form)

    def __call__(
        self, carry: tuple[jax.Array, jax.Array], x: jax.Array, *, precision: str
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        """((c, h), x), each [B, ...] -> ((c, h), h), as flax's cells do."""
        c, h = carry
        gates = self.input(x, precision=precision) + self.hidden(h, precision=precision)
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
        h = nn.sigmoid(o) * jnp.tanh(c)
        return (c, h), h


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
    """The variables of a BitDense from float weights [K, N]; see `fit_planes`.

    Args:
      codes: of 8 bits, where the weights have them already.
    """
    if codes is None:
        codes, scales = fit_planes(kernel, STORED)
    else:
        scales = plane_scales(kernel, codes, STORED)
    packed = {"words": pack_words(codes, STORED), "scales": scales}
    return packed if bias is None else {**packed, "bias": bias}


def pack_lstm(params: Mapping[str, Any]) -> dict[str, dict[str, jax.Array]]:
    """The variables of a BitLSTMCell from those of flax's LSTMCell or OptimizedLSTMCell."""
    expected = [side + gate for side in "ih" for gate in "ifgo"]
    if sorted(params) != sorted(expected):
        raise ValueError(f"an LSTM cell of {sorted(params)}: expected {expected}, as flax has")
    kernels = {
        side: jnp.concatenate([params[side + gate]["kernel"] for gate in "ifgo"], axis=1)
        for side in "ih"
    }
    bias = jnp.concatenate([params[f"h{gate}"]["bias"] for gate in "ifgo"])
    return {"input": pack_dense(kernels["i"]), "hidden": pack_dense(kernels["h"], bias)}


def to_bit_layers(
    model: nn.Module,
    variables: Mapping[str, Any],
    image_shape: tuple[int, ...],
    mode: str = FLOAT_NAME,
) -> tuple[nn.Module, dict[str, Any]]:
    """The same network on planes: (model, variables) whose precisions are "w1a8" to "w8a32".

    Args:
      model: an MLP.
      variables: as `dual_precision.load` gives, or `load_packed` with a `mode` of the file.
      image_shape: [H, W, C].
      mode: whose weights and normalisation to take. Planes are fitted to what it computes with;
        only where those are 8-bit codes, the planes are the codes': at 8 planes the weights are
        the mode's own, and at fewer nearer to them than the codes' prefix, by its scale.

    Raises:
      ValueError: another network than an MLP; no such mode.
    """
    model.modes.check_name(mode)
    if not isinstance(model, MLP):
        raise ValueError(
            f"bit layers of {type(model).__name__}: expected an MLP, whose layers are all Dense;"
            " for convolutions take Predictor"
        )
    packed = {}
    for (name,), layer in describe_layers(model, image_shape).items():
        own = variables["params"][name]
        kernel, bits, codes = own["kernel"], layer.table[mode].weights, None
        if bits is not None and layer.stored is not None:
            if bits == layer.stored == STORED:
                codes = encode(kernel, own["step"], bits, layer.stored)
            kernel = quantize_weights(kernel, own["step"], bits, layer.stored)
        packed[name] = pack_dense(kernel, own.get("bias"), codes)
    for name, statistics in variables.get("batch_stats", {}).items():  # none without a norm
        affine, running = variables["params"][name][mode], statistics[mode]
        gain = affine["scale"] * jax.lax.rsqrt(running["var"] + SwitchableBatchNorm.epsilon)
        packed[name] = {"gain": gain, "offset": affine["bias"] - running["mean"] * gain}
    norm = None if model.norm is None else FixedNorm
    return model.clone(modes=AnyPlanes(), dense=BitDense, norm=norm), {"params": packed}

"""Layers whose precision is an argument of the call; nothing in them remembers a mode.

Every layer declares the parameters of all its modes whatever the call names, so that one `init`
gives the tree that every mode uses. What belongs to one mode alone stands under that mode's name
in the tree (`norm/low/scale`, `conv1/input_step/high`); everything else is shared.
"""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from dual_precision.layers.facts import Layer
from dual_precision.precision import Asked, Modes, Precision, Resolved, Widths, is_whole
from dual_precision.primitives.code_products import code_product
from dual_precision.primitives.convolution import codes_pay, conv2d, conv2d_codes, conv2d_integers
from dual_precision.primitives.gradients import quantize_gradient, refuse_gradient
from dual_precision.primitives.normalization import per_channel
from dual_precision.primitives.quantizers import (
    activation_step,
    gaussian_weight_step,
    input_grid,
    rescaled_step,
    weight_grid,
)
from dual_precision.primitives.ste import midrise_ste, uniform_ste

# The collection that, when mutable, has every layer fit its input step to the batch at hand.
CALIBRATION = "calibration"
# A leaf of one of these names says that its place in the tree is a layer: its weights, as they are
# trained, or as bit planes.
WEIGHTS = ("kernel", "words")
# The stream of random numbers that gradients with a width are rounded by.
ROUNDING = "rounding"

Initializer = Callable[..., Any]
# What `_multiplied` of the same class takes: an InputGrid or a WeightGrid here; None is float.
Grid = Any


class QuantizedLayer(nn.Module):
    """One latent kernel, a step per channel, an input step per mode: what every layer shares.

    A layer is a product that is linear in both of its operands: a class of its own says the shape
    of its kernel and `product`, and costs, packed file and integer forward follow from these.

    Attributes:
      features: output channels.
      modes: what the names of modes mean.
      signed: whether its inputs may be negative; else what is negative counts as 0.
      use_bias: adds a vector after the product.
    """

    features: int
    modes: Modes
    signed: bool = False
    use_bias: bool = False

    matrix: ClassVar[bool] = False  # see facts.Layer
    # Whether output channel j is a sum of products with kernel[..., j] alone: then the sum is one
    # of integers, and its factor comes after it.
    channelwise: ClassVar[bool] = False
    kernel_init: ClassVar[Initializer] = staticmethod(nn.initializers.lecun_normal())

    def kernel_shape(self, inputs: int) -> tuple[int, ...]:
        """Shape of the kernel for so many input channels: [..., inputs, features]."""
        raise NotImplementedError

    def product(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """The layer on float arrays: x [..., inputs] and the kernel -> [..., features]."""
        raise NotImplementedError

    def product_of_integers(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """As `product`, the same bits, of integers from -256 to 256 in float32."""
        return self.product(x, kernel)

    def codes_pay(self, largest: tuple[int, int]) -> bool:
        """Whether `product_of_codes` is faster here than `product` of the same numbers, for
        inputs and weights of at most these magnitudes."""
        del largest
        return False

    def product_of_codes(
        self, x: jax.Array, codes: jax.Array, widths: tuple[int, int], largest: tuple[int, int]
    ) -> jax.Array:
        """As `product`, of codes and odd weights, see `conv2d_codes`; asked where `codes_pay`."""
        raise NotImplementedError

    def check_call(self, x: jax.Array) -> None:
        """Raises ValueError where the attributes, or the axes of an input, make no layer."""
        self._check_count("features", self.features)
        if x.ndim < 1 or x.shape[-1] < 1:
            raise ValueError(
                f"{self._named} got {list(x.shape)}: expected [..., inputs], 1 or more"
            )

    @nn.compact
    def __call__(self, x: jax.Array, *, precision: Asked) -> jax.Array:
        self.check_call(x)
        asked = self.modes.resolve(self.path, precision)
        kernel, weights = self._kernel(asked, x.shape[-1])
        y = self._multiplied(x, kernel, self._input(asked, x), weights)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            y = y + per_channel(bias, y.ndim)
        return self._output(asked, y)

    def facts(self, x: jax.Array, y: jax.Array) -> Layer:
        """What one call says: see `facts.Layer`; x and y have one example."""
        kernel = self.kernel_shape(x.shape[-1])
        return Layer(
            table=self.modes.at(self.path),
            kernel=kernel,
            macs=math.prod(y.shape[1:]) * math.prod(kernel[:-1]),  # each output is such a sum
            inputs=math.prod(x.shape[1:]),
            stored=self.modes.stored_at(self.path),
            signed=self.signed,
            matrix=self.matrix,
        )

    def _multiplied(
        self, x: jax.Array, kernel: jax.Array, inputs: Grid, weights: Grid
    ) -> jax.Array:
        """The product of what the call quantizes and of what it takes as it is."""
        if self.channelwise and weights is not None:
            product = self.product if inputs is None else self.product_of_integers
            return code_product(product, x, kernel, inputs, weights)
        x = x if inputs is None else uniform_ste(x, *inputs)
        return self.product(x, kernel if weights is None else midrise_ste(kernel, *weights))

    def _kernel(self, asked: Resolved, inputs: int) -> tuple[jax.Array, Grid]:
        """The latent kernel, and the grid that the call sees it on; None in float."""
        self._check_inputs(inputs)
        shape = self.kernel_shape(inputs)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        stored = self.modes.stored_at(self.path)
        if stored is None:
            return kernel, None
        narrowest = min(p.weights for p in self.modes.at(self.path).values() if p.weights)
        step = self.param("step", lambda _: gaussian_weight_step(kernel, narrowest, stored))
        if asked.weights is None:
            return kernel, None
        return kernel, weight_grid(kernel, step, asked.weights, stored)

    @property
    def _named(self) -> str:
        return f"layer {'/'.join(self.path)!r}"

    def _check_count(self, what: str, value: Any) -> None:
        if not is_whole(value) or value < 1:
            raise ValueError(f"{self._named} has {what}={value!r}: expected an integer, 1 or more")

    def _check_inputs(self, inputs: int) -> None:
        if not self.has_variable("params", "kernel"):
            return
        expected: int = self.get_variable("params", "kernel").shape[-2]
        if inputs != expected:
            raise ValueError(
                f"{self._named} got {inputs} channels: expected {expected};"
                " give images of the size and channels that the model was made for"
            )

    def _input(self, asked: Resolved, x: jax.Array) -> Grid:
        """The grid that the call sees its input on; None in float."""
        table = self.modes.at(self.path)
        widths = {mode: p.activations for mode, p in table.items() if p.activations}
        if not widths:
            return None
        steps = self.param("input_step", _initial_input_steps, widths)
        if asked.activations is None or asked.own.activations is None:
            return None
        check_present(asked.mode, steps)
        if self.is_mutable_collection(CALIBRATION) and not self.is_initializing():
            self._calibrate(asked.mode, x, asked.own)
        step = self._calibrated(asked.mode, steps)
        step = rescaled_step(step, asked.own.activations, asked.activations, self.signed)
        return input_grid(x, step, asked.activations, self.signed)

    def _calibrate(self, mode: str, x: jax.Array, own: Precision) -> None:
        """Leaves the input step that suits this batch, and the smallest input."""
        assert own.activations is not None
        step = activation_step(x, own.activations, self.signed)
        # Of the calls of one layer, the first decides; the smallest input is that of them all.
        self.sow(CALIBRATION, "input_step", {mode: step}, reduce_fn=_first)
        self.sow(CALIBRATION, "least", {mode: jnp.min(x)}, reduce_fn=_least)

    def _calibrated(self, mode: str, steps: Mapping[str, jax.Array]) -> jax.Array:
        if self.has_variable(CALIBRATION, "input_step"):
            found: jax.Array = self.get_variable(CALIBRATION, "input_step")[mode]
            return found
        return steps[mode]

    def _output(self, asked: Resolved, y: jax.Array) -> jax.Array:
        """y, whose gradient is rounded on its way back where the call gives it a width."""
        if asked.gradients is None or self.is_initializing():
            return y
        if not self.has_rng(ROUNDING):
            return refuse_gradient(y)
        return quantize_gradient(
            y, jnp.asarray(asked.gradients, jnp.int32), self.make_rng(ROUNDING)
        )


def _first(earlier: Any, new: Any) -> Any:
    return earlier or new  # sow starts from ()


def _least(earlier: Any, new: Any) -> Any:
    return jax.tree.map(jnp.minimum, earlier, new) if earlier else new


def check_present(name: str, present: Collection[str]) -> None:
    """Variables may hold some modes alone, as those that are read of a packed file do."""
    if name not in present:
        raise ValueError(
            f"these variables hold no values of precision {name!r}: expected one of"
            f" {list(present)}; load more of the packed file, or a checkpoint"
        )


def check_named_layers(model: nn.Module, precision: Asked) -> None:
    """Raises ValueError where widths name a layer that the model lacks; at the end of its call."""
    asked = precision.named_layers if isinstance(precision, Widths) else set()
    wanted = {*asked, *model.modes.layers}
    if not wanted:
        return
    params = model.variables.get("params", {})
    flat = [path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    known = {"/".join(key.key for key in path[:-1]) for path in flat if path[-1].key in WEIGHTS}
    model.modes.check_layers(known, asked)


def _initial_input_steps(_: jax.Array, widths: dict[str, int]) -> dict[str, jax.Array]:
    """LSQ's first guess, 2 E|x| / sqrt(top), for a rectified standard normal (E|x| = 0.4)."""
    return {mode: jnp.float32(0.8 / (2**bits - 1) ** 0.5) for mode, bits in widths.items()}


class Dense(QuantizedLayer):
    """y = quantize(x) @ quantize(kernel) + bias; x [..., in] -> [..., features]."""

    use_bias: bool = True

    matrix: ClassVar[bool] = True
    channelwise: ClassVar[bool] = True

    def kernel_shape(self, inputs: int) -> tuple[int, ...]:
        return (inputs, self.features)

    def product(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        # As rows: XLA copies what has more axes element by element, for the gradient of the kernel.
        rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
        return (rows @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])


class Conv(QuantizedLayer):
    """Two-dimensional convolution, zero padding; x [N, H, W, in] -> [N, h, w, out].

    The padding is symmetric, (kernel - 1) / 2 on every side, as in the published CIFAR networks
    (XLA's "SAME" pads strided convolutions on one side only): `kernel_size` is odd.
    """

    kernel_size: int = 3
    stride: int = 1

    channelwise: ClassVar[bool] = True
    kernel_init: ClassVar[Initializer] = staticmethod(nn.initializers.he_normal())

    def check_call(self, x: jax.Array) -> None:
        super().check_call(x)
        for what in ("kernel_size", "stride"):
            self._check_count(what, getattr(self, what))
        if self.kernel_size % 2 == 0:
            raise ValueError(
                f"{self._named} has kernel_size={self.kernel_size}: expected an odd number, as the"
                " padding is the same on every side"
            )
        if x.ndim != 4:
            raise ValueError(f"{self._named} got {list(x.shape)}: expected [N, H, W, channels]")

    def kernel_shape(self, inputs: int) -> tuple[int, ...]:
        return (self.kernel_size, self.kernel_size, inputs, self.features)

    def product(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        return conv2d(x, kernel, self.stride)

    def product_of_integers(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        return conv2d_integers(x, kernel, self.stride)

    def codes_pay(self, largest: tuple[int, int]) -> bool:
        return codes_pay(largest)

    def product_of_codes(
        self, x: jax.Array, codes: jax.Array, widths: tuple[int, int], largest: tuple[int, int]
    ) -> jax.Array:
        return conv2d_codes(x, codes, self.stride, widths, largest)

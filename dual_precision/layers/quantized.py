"""Layers whose precision is an argument of the call; nothing in them remembers a mode.

Every layer declares the parameters of all its modes whatever the call names, so that one `init`
gives the tree that every mode uses. What belongs to one mode alone stands under the name of that
mode in the tree (`norm/low/scale`, `conv1/input_step/high`); everything else is shared.
"""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from dual_precision.layers.facts import Layer
from dual_precision.precision import Asked, Modes, Precision, Resolved, is_whole
from dual_precision.primitives.code_products import code_product
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
# What `weights_on` or `inputs_on` of the same class takes: a WeightGrid or an InputGrid here; None
# is float.
Grid = Any

# What the nested grid is made of: a class that has one of these of its own is on another grid.
_OF_THE_GRID = (
    "grid_of_weights",
    "grid_of_inputs",
    "weights_on",
    "inputs_on",
    "stored_bits",
    "_calibrated",
    "_kernel",
    "_multiplied",
    "_output",
)
# What is true of one `product`, and not of another that a derived class puts in its place.
_OF_A_PRODUCT = ("matrix", "channelwise", "product_of_integers", "codes_pay", "product_of_codes")


class QuantizedLayer(nn.Module):
    """One latent kernel, a step per channel, an input step per mode: what every layer shares.

    A layer is a product that is linear in both of its operands: a class of its own says the shape
    of its kernel and `product`, and costs, packed file and integer forward follow from these. One
    that has another `product` than its base says all that is particular to it again.

    The grids are the nested ones. Another quantizer is a class with `grid_of_weights`,
    `grid_of_inputs`, `weights_on`, `inputs_on` and `stored_bits` of its own; behind a class of
    layers it makes layers of it: `class MinMaxDense(Dense, MinMaxLayer)`. What is packed or
    deployed is the nested grid alone, see `facts.Layer.nested`.

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

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in _OF_A_PRODUCT:
            if _depth(cls, "product") < _depth(cls, name):
                setattr(cls, name, vars(QuantizedLayer)[name])

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
        kernel = self._kernel(x.shape[-1])
        weights = self.grid_of_weights(asked, kernel)
        y = self._multiplied(x, kernel, self.grid_of_inputs(asked, x), weights)
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
            stored=self.stored_bits(),
            nested=self._nested,
            signed=self.signed,
            matrix=self.matrix,
        )

    def stored_bits(self) -> int | None:
        """Width of the stored codes, which all modes share; None where weights stay floats."""
        return self.modes.stored_at(self.path)

    def grid_of_weights(self, asked: Resolved, kernel: jax.Array) -> Grid:
        """The grid that a call sees the kernel on, [..., features]; None in float. Its axes before
        the last have size 1, so that rows of the kernel can be seen on it too."""
        stored = self.stored_bits()
        if stored is None:
            return None
        narrowest = min(p.weights for p in self.modes.at(self.path).values() if p.weights)
        step = self.param("step", lambda _: gaussian_weight_step(kernel, narrowest, stored))
        if asked.weights is None:
            return None
        return weight_grid(kernel, step, asked.weights, stored)

    def weights_on(self, kernel: jax.Array, grid: Grid) -> jax.Array:
        """The kernel, or rows of it, on a grid of `grid_of_weights`; the same shape."""
        return midrise_ste(kernel, *grid)

    def grid_of_inputs(self, asked: Resolved, x: jax.Array) -> Grid:
        """The grid that a call sees its input on; None in float."""
        widths = self.modes.input_widths(self.path, self.signed)
        if not widths:
            return None
        steps = self.param("input_step", _initial_input_steps, widths)
        if asked.activations is None or asked.own.activations is None:
            return None
        check_present(asked.mode, steps)
        if self.fits_inputs():
            self._calibrate(asked.mode, x, asked.own)
        step = self._calibrated(asked.mode, steps)
        step = rescaled_step(step, asked.own.activations, asked.activations, self.signed)
        return input_grid(x, step, asked.activations, self.signed)

    def inputs_on(self, x: jax.Array, grid: Grid) -> jax.Array:
        """Inputs on a grid of `grid_of_inputs`; the same shape."""
        return uniform_ste(x, *grid)

    def fits_inputs(self) -> bool:
        """Whether `grid_of_inputs` of this call is fitted to the inputs that it is given."""
        return self.is_mutable_collection(CALIBRATION) and not self.is_initializing()

    @property
    def _nested(self) -> bool:
        cls = type(self)
        return all(getattr(cls, name) is getattr(QuantizedLayer, name) for name in _OF_THE_GRID)

    def _multiplied(
        self, x: jax.Array, kernel: jax.Array, inputs: Grid, weights: Grid
    ) -> jax.Array:
        """The product of what the call quantizes and of what it takes as it is."""
        if self.channelwise and self._nested and weights is not None:
            product = self.product if inputs is None else self.product_of_integers
            return code_product(product, x, kernel, inputs, weights)
        x = x if inputs is None else self.inputs_on(x, inputs)
        return self.product(x, kernel if weights is None else self.weights_on(kernel, weights))

    def _kernel(self, inputs: int) -> jax.Array:
        """The latent kernel."""
        self._check_inputs(inputs)
        shape = self.kernel_shape(inputs)
        kernel: jax.Array = self.param("kernel", self.kernel_init, shape, jnp.float32)
        return kernel

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
                f"{self._named} got {inputs} channels: expected {expected}; give inputs of the"
                " shape that the model was made for"
            )

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


def _depth(cls: type, name: str) -> int:
    """How many classes are asked for an attribute before the one that has it."""
    return next(at for at, base in enumerate(cls.__mro__) if name in vars(base))


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


def _initial_input_steps(_: jax.Array, widths: dict[str, int]) -> dict[str, jax.Array]:
    """LSQ's first guess, 2 E|x| / sqrt(top), for a rectified standard normal (E|x| = 0.4).

    Signed inputs start from it too. The guess for a standard normal, 1.6 / sqrt(2^(n-1) - 1), is
    nearly three times as large, and worse from 5 bits on: of 8 bits its mean square error is
    1.7e-3, and with this one 2.1e-4.
    """
    return {mode: jnp.float32(0.8 / (2**bits - 1) ** 0.5) for mode, bits in widths.items()}

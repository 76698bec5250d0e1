"""What the benchmark measures beside this project: plain flax, Qwix and AQT on the same ResNet.

The network is written here once more, from the layers of flax, so that nothing of this project
can slow it down or speed it up. Its modules have the names that `dual_precision.models.resnet`
gives its own: a test copies the parameters over and finds the same logits.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from experiments.benchmark.comparison import relative_difference


class PlainResNet(nn.Module):
    """Images [N, H, W, C], floats that are normalised -> logits [N, classes], in training mode.

    Attributes:
      stage_sizes, widths: blocks and channels per stage.
      space_to_depth: side of the pixel blocks that the stem stacks into channels.
      num_classes: number of logits.
      conv, dense: layers of flax, or with a quantized product put into them. The stem is always
        built by `stem`, for its input is pixels.
    """

    stage_sizes: tuple[int, ...]
    widths: tuple[int, ...]
    space_to_depth: int = 1
    num_classes: int = 10
    conv: Any = nn.Conv
    dense: Any = nn.Dense
    stem: Any = nn.Conv

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = partial(self.conv, use_bias=False)
        norm = partial(nn.BatchNorm, use_running_average=False, momentum=0.9, epsilon=1e-5)
        x = _stack_blocks(x, self.space_to_depth)
        x = self.stem(self.widths[0], (3, 3), padding=1, use_bias=False, name="stem")(x)
        x = nn.relu(norm(name="stem_norm")(x))
        for stage, (size, width) in enumerate(zip(self.stage_sizes, self.widths, strict=True)):
            for block in range(size):
                stride = 2 if stage > 0 and block == 0 else 1
                x = _Block(width, stride, conv, norm, name=f"stage{stage + 1}_block{block + 1}")(x)
        return self.dense(self.num_classes, name="classifier")(jnp.mean(x, axis=(1, 2)))


class _Block(nn.Module):
    features: int
    stride: int
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv(self.features, (3, 3), self.stride, padding=1, name="conv1")(x)
        y = nn.relu(self.norm(name="norm1")(y))
        y = self.norm(name="norm2")(self.conv(self.features, (3, 3), padding=1, name="conv2")(y))
        x = x[:, :: self.stride, :: self.stride]
        missing = self.features - x.shape[-1]
        return nn.relu(y + jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, missing))))


def _stack_blocks(x: jax.Array, side: int) -> jax.Array:
    n, h, w, c = x.shape
    x = x.reshape(n, h // side, side, w // side, side, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, h // side, w // side, side * side * c)


def plain(**sizes: Any) -> nn.Module:
    """Float, as anyone would write it."""
    return PlainResNet(**sizes)


def qwix(**sizes: Any) -> nn.Module:
    """Qwix's quantized training (QAT), int8 weights and activations, its default calibration.

    As in the networks of this project the input of the stem, pixels, is left as it is.

    Raises:
      ImportError: Qwix is not installed.
    """
    import qwix as library

    rules = [
        library.QtRule(module_path="stem", weight_qtype="int8"),
        library.QtRule(module_path=".*", weight_qtype="int8", act_qtype="int8"),
    ]
    return library.quantize_model(PlainResNet(**sizes), library.QtProvider(rules))


def aqt(**sizes: Any) -> nn.Module:
    """AQT, 8-bit weights and activations, put into the layers of flax; gradients in float.

    Raises:
      ImportError: AQT is not installed.
    """
    from aqt.jax.v2 import aqt_conv_general, config
    from aqt.jax.v2.flax import aqt_flax

    def product(inputs: int | None) -> Callable[..., jax.Array]:
        settings = aqt_conv_general.conv_general_dilated_make(2, inputs, 8)
        return straight_through(aqt_conv_general.make_conv_general_dilated(settings))

    settings = config.config_v4(dlhs_bits=None, drhs_bits=None)
    dot = partial(aqt_flax.AqtDotGeneral, settings, prng_name=None)  # rounds to nearest: no noise
    return PlainResNet(
        **sizes,
        conv=partial(nn.Conv, conv_general_dilated=product(8)),
        dense=partial(nn.Dense, dot_general_cls=dot),
        stem=partial(nn.Conv, conv_general_dilated=product(None)),
    )


def straight_through(product: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`product`, a quantized convolution, with the gradient of the float one.

    AQT's convolution is for inference: it casts its operands to int8 outside of any custom
    derivative, so that its gradient is zero. Its products of matrices have this gradient.
    """

    def convolve(x: jax.Array, kernel: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        exact = partial(_convolve, args=args, kwargs=kwargs)

        @jax.custom_vjp
        def quantized(x: jax.Array, kernel: jax.Array) -> jax.Array:
            return product(x, kernel, *args, **kwargs)

        quantized.defvjp(
            lambda x, kernel: (quantized(x, kernel), (x, kernel)),
            lambda operands, g: jax.vjp(exact, *operands)[1](g),
        )
        return quantized(x, kernel)

    return convolve


def _convolve(x: jax.Array, kernel: jax.Array, args: Any, kwargs: Any) -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, *args, **kwargs)


def logits(network: nn.Module, variables: Any, images: jax.Array) -> jax.Array:
    """[N, classes], in one compiled program."""
    forward = jax.jit(lambda v, x: network.apply(v, x, mutable=["batch_stats"])[0])
    return forward(variables, images)


# Name -> how it is made, and what it quantizes.
PEERS: dict[str, tuple[Callable[..., nn.Module], str]] = {
    "plain flax": (plain, ""),
    "Qwix w8a8": (qwix, "all layers; multiplies int8 codes forward, floats backward"),
    "AQT w8a8": (
        aqt,
        "all layers; its convolution has no gradient and takes that of the float one here;"
        " it multiplies codes as floats, in the classifier as int8; floats backward",
    ),
}


def runnable_peers(
    names: Sequence[str], sizes: dict[str, Any], variables: Any, images: jax.Array
) -> tuple[dict[str, tuple[nn.Module, jax.Array]], list[str]]:
    """Name -> network and its logits, of those peers that run here; a line on each."""
    found, notes = {}, []
    for name in names:
        make, quantizes = PEERS[name]
        try:
            network = make(**sizes)
            found[name] = network, logits(network, variables, images)
        except ImportError:
            notes.append(f"{name}: not installed; pip install -e '.[benchmark]'")
        except Exception as error:  # one that this version of jax breaks; the others still count
            notes.append(f"{name}: cannot run here, {type(error).__name__}: {error}"[:200])
        else:
            notes += [f"{name} quantizes {quantizes}."] if quantizes else []
    return found, notes


def quantized_difference(logits: jax.Array, exact: jax.Array) -> float:
    """|logits - exact| / |exact|.

    Raises:
      ValueError: it is nothing; then nothing is quantized, and the comparison means nothing.
    """
    difference = relative_difference(logits, exact)
    if not difference > 1e-4:
        raise ValueError(
            f"logits differ from those in float by {difference:.1e}: nothing is quantized"
        )
    return difference


def initial_state(variables: Any, optimizer: optax.GradientTransformation) -> Any:
    """What `peer_step` carries, with buffers of its own."""
    params, statistics = jax.tree.map(jnp.copy, (variables["params"], variables["batch_stats"]))
    return params, statistics, optimizer.init(params)


def peer_step(model: nn.Module, optimizer: optax.GradientTransformation) -> Callable:
    """(params, batch_stats, opt_state), images, labels -> the next state and the loss."""

    def step(state: Any, images: jax.Array, labels: jax.Array) -> tuple[Any, jax.Array]:
        params, batch_stats, opt_state = state

        def loss_of(params: Any) -> tuple[jax.Array, Any]:
            variables = {"params": params, "batch_stats": batch_stats}
            logits, updates = model.apply(variables, images, mutable=["batch_stats"])
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
            return loss, updates["batch_stats"]

        (loss, new_stats), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), new_stats, opt_state), loss

    return step

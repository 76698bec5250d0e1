"""A multi-layer perceptron."""

import math
from functools import partial

import jax
from flax import linen as nn

from dual_precision.layers import Dense, SwitchableBatchNorm, check_named_layers
from dual_precision.models.inputs import ModuleDef, prepare_images
from dual_precision.precision import Asked, Modes, mode_of


class MLP(nn.Module):
    """Images [N, H, W, C] -> logits [N, classes] through Dense, norm, relu per hidden layer.

    Attributes are those of `ResNet`, with `hidden`, the widths of the hidden layers. Where `norm`
    is None there is none, and the layers have biases. The first and the last layer keep 8-bit
    weights in every mode.
    """

    num_classes: int
    modes: Modes
    hidden: tuple[int, ...] = (256, 256, 256)
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.25,)
    dense: ModuleDef = Dense
    norm: ModuleDef = SwitchableBatchNorm

    @nn.compact
    def __call__(self, x: jax.Array, *, precision: Asked, train: bool = False) -> jax.Array:
        self.modes.check_name(mode_of(precision))
        x = prepare_images(x, self.mean, self.std)
        x = x.reshape(x.shape[0], math.prod(x.shape[1:]))
        for index, width in enumerate(self.hidden):
            # The pixels are 8-bit codes already: the input of the first layer needs no quantizer.
            modes = self.modes.pin(8, None) if index == 0 else self.modes
            biased = self.norm is None
            layer = self.dense(width, modes=modes, use_bias=biased, name=f"dense{index + 1}")
            x = layer(x, precision=precision)
            if self.norm is not None:
                norm = self.norm(modes=self.modes, name=f"norm{index + 1}")
                x = norm(x, precision=precision, train=train)
            x = nn.relu(x)
        head = self.dense(self.num_classes, modes=self.modes.pin(8, 8), name="classifier")
        logits = head(x, precision=precision)
        check_named_layers(self, precision)
        return logits


# PrecisionBatching's MNIST network (Lam et al. 2020, arXiv 2003.00822): 20 M weights, no norm.
mlp_4096 = partial(MLP, hidden=(4096, 4096), norm=None)

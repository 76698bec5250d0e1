"""Residual networks for small images (He et al. 2015, arXiv 1512.03385, section 4.2).

The standard ones: 6n + 2 layers, 16/32/64 channels, shortcuts without parameters (option A), or,
with `projections`, 1x1 convolutions where the shape changes (option B, names that end in "b").
The first convolution and the classifier keep 8-bit weights in every mode.
"""

import itertools
import re
from collections.abc import Collection, Iterator
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from dual_precision.layers import Conv, Dense, SwitchableBatchNorm, check_named_layers
from dual_precision.models.inputs import ModuleDef, prepare_images
from dual_precision.precision import Asked, Modes, kept_blocks, mode_of

_BLOCK = re.compile(r"stage([1-9][0-9]{0,8})_block([1-9][0-9]{0,8})")
_SHOWN = 100  # names of blocks in an error


class BasicBlock(nn.Module):
    """relu(norm(conv(relu(norm(conv(x))))) + shortcut(x))."""

    features: int
    stride: int
    conv: ModuleDef
    norm: ModuleDef
    projections: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, precision: Asked, train: bool) -> jax.Array:
        y = self.conv(self.features, stride=self.stride, name="conv1")(x, precision=precision)
        y = nn.relu(self.norm(name="norm1")(y, precision=precision, train=train))
        y = self.conv(self.features, name="conv2")(y, precision=precision)
        y = self.norm(name="norm2")(y, precision=precision, train=train)
        kept = kept_blocks(precision)
        if (name := "/".join(self.path)) in kept:
            y = y * jnp.asarray(kept[name], y.dtype)
        if self.projections and (self.stride > 1 or x.shape[-1] != self.features):
            conv = self.conv(self.features, kernel_size=1, stride=self.stride, name="shortcut")
            x = conv(x, precision=precision)
            x = self.norm(name="shortcut_norm")(x, precision=precision, train=train)
        else:
            x = shortcut(x, self.features, self.stride)
        return nn.relu(y + x)


def shortcut(x: jax.Array, features: int, stride: int) -> jax.Array:
    """Option A: take every `stride`-th pixel and fill up with zero channels; no parameters."""
    x = jax.lax.slice(x, (0, 0, 0, 0), x.shape, (1, stride, stride, 1))
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, features - x.shape[-1])))


class ResNet(nn.Module):
    """Images [N, H, W, C] (uint8 pixels, or floats already normalised) -> logits [N, classes].

    Attributes:
      num_classes: number of logits.
      modes: what "low", "high", ... mean.
      stage_sizes: blocks per stage; every stage but the first halves the resolution.
      widths: channels per stage.
      transitions: halve the resolution by a convolution of its own, before the blocks of a stage,
        so that every shortcut is an identity; else the first block of a stage does it.
      projections: shortcuts that change the shape are 1x1 convolutions with a normalisation.
      space_to_depth: side of the pixel blocks that the stem stacks into channels; 1 is none.
      skipped: names of blocks that there are not, such as "stage2_block1"; only those whose
        shortcut is an identity, so that what follows does not change.
      mean, std: per channel, in units of 1, to normalise uint8 pixels with.
      conv, dense, norm: layer classes.
    """

    num_classes: int
    modes: Modes
    stage_sizes: tuple[int, ...]
    widths: tuple[int, ...] = (16, 32, 64)
    transitions: bool = False
    projections: bool = False
    space_to_depth: int = 1
    skipped: tuple[str, ...] = ()
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.25,)
    conv: ModuleDef = Conv
    dense: ModuleDef = Dense
    norm: ModuleDef = SwitchableBatchNorm

    @nn.compact
    def __call__(self, x: jax.Array, *, precision: Asked, train: bool = False) -> jax.Array:
        self.modes.check_name(mode_of(precision))
        self._check_stages()
        self._check_blocks("skipped", self.skipped)
        self._check_blocks("kept", kept_blocks(precision))
        skipped = frozenset(self.skipped)
        x = prepare_images(x, self.mean, self.std)
        x = space_to_depth(x, self.space_to_depth)
        conv = partial(self.conv, modes=self.modes)
        norm = partial(self.norm, modes=self.modes)
        # The pixels are 8-bit codes already, so the input of the stem needs no quantizer.
        x = self.conv(self.widths[0], modes=self.modes.pin(8, None), name="stem")(
            x, precision=precision
        )
        x = nn.relu(norm(name="stem_norm")(x, precision=precision, train=train))
        for stage, (size, width) in enumerate(zip(self.stage_sizes, self.widths, strict=True)):
            if self.transitions and stage > 0:
                x = conv(width, stride=2, name=f"stage{stage + 1}_conv")(x, precision=precision)
                x = norm(name=f"stage{stage + 1}_norm")(x, precision=precision, train=train)
                x = nn.relu(x)
            for block in range(size):
                halve = stage > 0 and block == 0 and not self.transitions
                stride = 2 if halve else 1
                name = f"stage{stage + 1}_block{block + 1}"
                if name in skipped:
                    continue
                make = partial(BasicBlock, width, stride, conv, norm, self.projections)
                x = make(name=name)(x, precision=precision, train=train)
        x = jnp.mean(x, axis=(1, 2))
        head = self.dense(self.num_classes, modes=self.modes.pin(8, 8), name="classifier")
        logits = head(x, precision=precision)
        check_named_layers(self, precision, blocks=kept_blocks(precision))  # checked above
        return logits

    def _check_stages(self) -> None:
        if not self.widths or len(self.widths) != len(self.stage_sizes):
            raise ValueError(
                f"stage_sizes={self.stage_sizes} and widths={self.widths}: expected as many of"
                " both, one for each stage"
            )
        by_shortcuts = not (self.projections or self.transitions)  # that the width changes
        if by_shortcuts and [*self.widths] != sorted(self.widths):
            raise ValueError(
                f"widths={self.widths}: expected none below the one before, as a shortcut without"
                " parameters drops no channels; order them, or set projections=True"
            )

    def _check_blocks(self, what: str, names: Collection[str]) -> None:
        """Raises ValueError unless these are blocks whose shortcut is an identity."""
        if unknown := sorted(name for name in {*names} if not self._may_be_left(name)):
            known = [*itertools.islice(self._left_names(), _SHOWN)]
            raise ValueError(f"{what} blocks {unknown}: expected some of {known}")

    def _may_be_left(self, name: str) -> bool:
        """Without the list of all names: a forged file may ask for millions of blocks."""
        if (found := _BLOCK.fullmatch(name)) is None:
            return False
        stage, block = (int(number) - 1 for number in found.groups())
        in_range = stage < len(self.stage_sizes) and block < self.stage_sizes[stage]
        return in_range and block >= self._first_to_leave(stage)

    def _left_names(self) -> Iterator[str]:
        for stage, size in enumerate(self.stage_sizes):
            for block in range(self._first_to_leave(stage), size):
                yield f"stage{stage + 1}_block{block + 1}"

    def _first_to_leave(self, stage: int) -> int:
        """The first block of a stage, from 0, whose shortcut is an identity."""
        return 1 if stage > 0 and not self.transitions else 0


def space_to_depth(x: jax.Array, side: int) -> jax.Array:
    """Stacks blocks of side x side pixels: [N, H, W, C] -> [N, H/side, W/side, side*side*C]."""
    if side == 1:
        return x
    if side < 1:
        raise ValueError(f"space_to_depth={side}: expected 1 or more, the side of a pixel block")
    n, h, w, c = x.shape
    if h % side or w % side:
        raise ValueError(
            f"images of {h}x{w} pixels: expected a multiple of {side}, the stem's pixel block;"
            " choose another model"
        )
    x = x.reshape(n, h // side, side, w // side, side, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, h // side, w // side, side * side * c)


# For two CPU cores: about six times the images per second of resnet20 at a third of its
# multiply-accumulates, because XLA's CPU convolutions like more channels on fewer pixels.
resnet8_fast = partial(
    ResNet,
    stage_sizes=(0, 1, 1),
    widths=(32, 64, 128),
    transitions=True,
    space_to_depth=2,
)
resnet8 = partial(ResNet, stage_sizes=(1, 1, 1))
resnet20 = partial(ResNet, stage_sizes=(3, 3, 3))
resnet32 = partial(ResNet, stage_sizes=(5, 5, 5))
resnet38 = partial(ResNet, stage_sizes=(6, 6, 6))
resnet56 = partial(ResNet, stage_sizes=(9, 9, 9))
resnet74 = partial(ResNet, stage_sizes=(12, 12, 12))
resnet110 = partial(ResNet, stage_sizes=(18, 18, 18))
resnet152 = partial(ResNet, stage_sizes=(25, 25, 25))
resnet20b = partial(resnet20, projections=True)
resnet32b = partial(resnet32, projections=True)
resnet38b = partial(resnet38, projections=True)
resnet56b = partial(resnet56, projections=True)
resnet74b = partial(resnet74, projections=True)
resnet110b = partial(resnet110, projections=True)
resnet152b = partial(resnet152, projections=True)

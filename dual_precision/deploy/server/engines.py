"""What answers in a server: a network compiled in all of its modes, and what each of them costs."""

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import jax
import numpy as np

from dual_precision.costs import (
    EnergyModel,
    mode_cost,
    mode_energy,
    product_cost,
    product_energy,
)
from dual_precision.deploy.batching import checked_inputs, checked_sizes, in_batches
from dual_precision.deploy.file.info import PackedInfo
from dual_precision.deploy.file.packed import PackedFile, Source
from dual_precision.deploy.planes.bit_layers import to_bit_layers
from dual_precision.deploy.planes.packing import STORED, plane_bytes
from dual_precision.deploy.predictor import AUTO, Predictor
from dual_precision.structure import batch_of

SIZES = (1, 8, 64)
_WARM = 3  # batches of the largest size whose shortest time a mode is first believed to take
_ACTIVATIONS = 8


@dataclasses.dataclass(frozen=True)
class Priced:
    """A mode and what it costs.

    Attributes:
      name: of the mode.
      bytes: of the file, or of the planes, that it reads.
      bit_operations, energy: of an image; energy in nJ is a model, see costs.py.
      trained: whether a budget may choose it, see `PackedInfo.choices`.
    """

    name: str
    bytes: int
    bit_operations: float
    energy: float
    trained: bool = True


@dataclasses.dataclass(frozen=True)
class Answered:
    """What an engine gives for some images.

    Attributes:
      logits: float32 [N, classes].
      mode: that answered; "auto" is the cascade.
      escalated, mirrored: rows that went on, of the cascade; None of a mode.
    """

    logits: np.ndarray
    mode: str
    escalated: np.ndarray | None = None
    mirrored: np.ndarray | None = None


class Engine(Protocol):
    """A network that answers.

    Attributes:
      shape: [H, W, C] of the uint8 images it takes.
      priced: its modes; which is cheap depends on what is counted, see `BudgetSettings.ranked`.
      cascade: the modes of "auto", the first and the one that it asks then; None is no cascade.
      network: its name.
    """

    cascade: tuple[str, str] | None
    network: str

    @property
    def shape(self) -> tuple[int, ...]:
        """See above."""
        ...

    @property
    def priced(self) -> Sequence[Priced]:
        """See above."""
        ...

    def answer(self, images: np.ndarray, mode: str) -> Answered:
        """The logits of a mode, or of "auto"."""
        ...


class PredictorEngine:
    """A `Predictor`: the modes of the file, and its cascade."""

    def __init__(
        self,
        source: Source,
        precisions: Sequence[str] | None = None,
        sizes: Sequence[int] = SIZES,
    ) -> None:
        """As `Predictor`."""
        self._predictor = Predictor(source, sizes, precisions)
        info = self._predictor.info
        self.shape, self.network = info.image_shape, str(info.network["name"])
        cascade = self._predictor.cascade
        self.cascade = (cascade.first, cascade.then) if cascade else None
        self.priced = priced_modes(info, self._predictor.precisions)

    def answer(self, images: np.ndarray, mode: str) -> Answered:
        """See Engine; errors as `Predictor.predict`."""
        if mode != AUTO:
            return Answered(self._predictor.predict(images, mode), mode)
        found = self._predictor.answer(images)
        return Answered(found.logits, AUTO, found.escalated, found.mirrored)


def priced_modes(info: PackedInfo, precisions: Sequence[str] | None = None) -> list[Priced]:
    """The modes of a file, in its order; arguments and errors as `PackedInfo.chosen`."""
    return [
        Priced(
            name,
            info.bytes_read[name],
            mode_cost(info, name).bit_operations,
            mode_energy(info, name).total,
            name in info.choices,
        )
        for name in info.chosen(precisions)
    ]


def check_planes(planes: Sequence[int]) -> None:
    """Raises ValueError where these are no numbers of planes that there are, ascending."""
    if not planes or sorted(set(planes)) != [*planes] or not 1 <= planes[0] <= planes[-1] <= STORED:
        raise ValueError(f"planes {[*planes]}: expected some of 1 to {STORED}, ascending")


class PlanesEngine:
    """A network of matrix products on bit planes: any numbers of them, "w2a8" and "w8a8"."""

    cascade: tuple[str, str] | None = None

    def __init__(
        self,
        source: Source,
        planes: Sequence[int] = (2, STORED),
        sizes: Sequence[int] = SIZES,
    ) -> None:
        """Reads the file and compiles a program for every number of planes and batch size.

        Raises:
          ValueError: no number of planes, or one that there is not; batch sizes as of
            `Predictor`; as `to_bit_layers`.
        """
        check_planes(planes)
        self._sizes = checked_sizes(sizes)
        with PackedFile(source) as file:
            info, (model, variables) = file.info, file.load()
        layered, packed = to_bit_layers(model, variables, info.example, mode=info.choices[-1])
        self.shape, self.network = info.image_shape, str(info.network["name"])
        self._row = batch_of(info.example, 1)
        self._variables = jax.device_put(packed)
        self.priced = [_priced_planes(info, packed["params"], count) for count in planes]
        self._programs: dict[tuple[str, int], Any] = {}
        for own in self.priced:
            program = jax.jit(partial(layered.apply, precision=own.name))
            for size in self._sizes:
                lowered = program.lower(self._variables, *batch_of(info.example, size))
                self._programs[own.name, size] = lowered.compile()

    def answer(self, images: np.ndarray, mode: str) -> Answered:
        """See Engine.

        Raises:
          ValueError: a mode that is not there; images of another shape or dtype.
        """
        if all(own.name != mode for own in self.priced):
            raise ValueError(f"precision {mode!r}: expected one of {[p.name for p in self.priced]}")

        def run(size: int, rows: tuple[np.ndarray, ...]) -> jax.Array:
            return self._programs[mode, size](self._variables, *rows)

        return Answered(in_batches(run, checked_inputs(images, self._row), self._sizes), mode)


def _priced_planes(info: PackedInfo, params: Mapping[str, Any], planes: int) -> Priced:
    """Of a number of planes; energy by the figures of costs.py."""
    model = EnergyModel()
    layers = info.layers.values()
    macs = sum(layer.macs for layer in layers)
    bits = planes * sum(math.prod(layer.kernel) for layer in layers)
    inputs = sum(layer.inputs for layer in layers)
    mac = model.multiply * planes * _ACTIVATIONS / 64 + model.add
    picojoules = macs * mac + bits / 64 * model.dram + inputs * 2 * _ACTIVATIONS / 64 * model.sram
    products = info.products.values()
    picojoules += 1000 * sum(product_energy(product, model).total for product in products)
    between = sum(product_cost(product).bit_operations for product in products)
    return Priced(
        f"w{planes}a{_ACTIVATIONS}",
        plane_bytes(params, planes),
        macs * planes * _ACTIVATIONS + between,
        picojoules / 1000,
    )


def seconds_of_an_image(engine: Engine) -> dict[str, float]:
    """Mode -> seconds that an image takes in the largest batch, the shortest of some."""
    images = np.zeros((SIZES[-1], *engine.shape), np.uint8)
    found = {}
    for own in engine.priced:
        times = []
        for _ in range(_WARM):
            start = time.perf_counter()
            engine.answer(images, own.name)
            times.append(time.perf_counter() - start)
        found[own.name] = min(times) / len(images)
    return found

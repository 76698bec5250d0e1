"""Networks that take their precision as an argument of the call, by name."""

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from flax import linen as nn

from dual_precision.layers import MinMaxConv, MinMaxDense
from dual_precision.models.lstm import LSTM
from dual_precision.models.mlp import MLP, mlp_4096
from dual_precision.models.resnet import (
    resnet8,
    resnet8_fast,
    resnet20,
    resnet20b,
    resnet32,
    resnet32b,
    resnet38,
    resnet38b,
    resnet56,
    resnet56b,
    resnet74,
    resnet74b,
    resnet110,
    resnet110b,
    resnet152,
    resnet152b,
)
from dual_precision.models.transformer import Transformer, transformer_512
from dual_precision.precision import Modes, modes_from

IMAGE_MODELS: dict[str, Any] = {
    "mlp": MLP,
    "mlp_4096": mlp_4096,
    "resnet8": resnet8,
    "resnet8_fast": resnet8_fast,
    "resnet20": resnet20,
    "resnet20b": resnet20b,
    "resnet32": resnet32,
    "resnet32b": resnet32b,
    "resnet38": resnet38,
    "resnet38b": resnet38b,
    "resnet56": resnet56,
    "resnet56b": resnet56b,
    "resnet74": resnet74,
    "resnet74b": resnet74b,
    "resnet110": resnet110,
    "resnet110b": resnet110b,
    "resnet152": resnet152,
    "resnet152b": resnet152b,
    "mlp_minmax": partial(MLP, dense=MinMaxDense),
    "resnet8_fast_minmax": partial(resnet8_fast, conv=MinMaxConv),
    "resnet20_minmax": partial(resnet20, conv=MinMaxConv),
}
TEXT_MODELS: dict[str, Any] = {
    "lstm": LSTM,
    "transformer": Transformer,
    "transformer_512": transformer_512,
}
MODELS: dict[str, Any] = IMAGE_MODELS | TEXT_MODELS


def build(name: str, **arguments: Any) -> nn.Module:
    """The model called `name`, with `arguments` for its attributes (num_classes, modes, ...).

    A list becomes a tuple: a model is a static argument of compiled programs, and so hashable.

    Raises:
      ValueError: unknown name; the message lists the known ones; modes that are none.
    """
    if name not in MODELS:
        raise ValueError(f"model {name!r} is unknown: expected one of {sorted(MODELS)}")
    if not isinstance(own := arguments.get("modes", Modes()), Modes):
        raise ValueError(
            f"modes={own!r:.200}: expected Modes, as modes(low='w2a2', high='w8a8') gives"
        )
    fixed = {key: tuple(v) if isinstance(v, list) else v for key, v in arguments.items()}
    return MODELS[name](**fixed)


def build_from(description: Mapping[str, Any]) -> nn.Module:
    """The model that a config's "network" entry describes.

    Args:
      description: {"name", what `Modes.to_json` gives, and the attributes of the model}; JSON
        types.

    Raises:
      ValueError: no such model, or no description of one.
    """
    known = description if isinstance(description, Mapping) else {}
    name = known.get("name")
    if not isinstance(name, str) or not isinstance(known.get("modes"), Mapping):
        raise ValueError(
            f"a network of {str(description)[:200]}: expected a name, modes and attributes"
        )
    arguments = {
        key: value
        for key, value in description.items()
        if key not in ("name", "modes", "layers", "stored", "norms")
    }
    try:
        return build(name, modes=modes_from(description), **arguments)
    except (TypeError, AttributeError) as error:  # a list for a table, an unknown attribute
        raise ValueError(f"network {name!r}: {error}: expected what that model takes") from None


def check_description(description: Mapping[str, Any], model: nn.Module) -> None:
    """Raises ValueError where `build_from` makes another model of a description than this one."""
    if build_from(json.loads(json.dumps(description))) != model:
        raise ValueError(
            f"network {dict(description)} describes another model than the one given:"
            " expected build_from(network) == model"
        )

"""The same model with other classes in the place of its layers: how a network is deployed.

A form is a class whose call computes what that of a layer does, in another way: from integers, or
from bit planes. It is mixed with the class of each layer, so that what the class says itself, its
attributes and its `product`, is kept, and classes that nobody has heard of here have forms too.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen as nn

from dual_precision.structure import Example, LayerPath, Structure, batch_of, check_nested

Classes = Callable[[type], Any]  # the class of a layer -> what stands in its place


@functools.cache
def layer_form(cls: type, form: type) -> type:
    """The class of layers `cls`, with the call of `form`.

    Raises:
      ValueError: `cls` has a call of its own, which `form` would not compute.
    """
    made = type(f"{form.__name__.removesuffix('Layer')}{cls.__name__}", (cls, form), _about(cls))
    if made.__call__ is not form.__call__:
        raise ValueError(
            f"layers of class {cls.__name__} have a call of their own: expected a class derived"
            " from QuantizedLayer that says `kernel_shape` and `product` alone, as what is"
            " deployed is made of these"
        )
    return made


@functools.cache
def call_form(cls: type, form: type, *behind: type) -> type:
    """The class `cls` of norms, or of layers with a call of their own, with that of `form`.

    Args:
      behind: classes that are mixed in behind `cls`, for what `form` calls.
    """
    return type(f"{form.__name__}Of{cls.__name__}", (form, cls, *behind), _about(cls))


def _about(cls: type) -> dict[str, Any]:
    return {"__module__": cls.__module__, "__doc__": cls.__doc__}


def with_forms(
    model: nn.Module, structure: Structure, layers: Classes, norms: Classes, **others: Any
) -> nn.Module:
    """The model with forms in the place of the classes that its attributes name.

    Args:
      layers, norms: the class of a layer, or of a norm -> what stands in its place, or itself.
      others: more attributes to set.

    Raises:
      ValueError: a layer that is not to keep its class computes with another grid than its form.
    """
    classes = structure.classes
    check_nested(structure, [p for p in structure.layers if layers(classes[p]) is not classes[p]])
    forms = {classes[path]: norms for path in structure.norms}
    forms |= {classes[path]: layers for path in structure.layers}
    values = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    replaced = {
        name: forms[value](value)
        for name, value in values.items()
        if isinstance(value, type) and value in forms
    }
    return model.clone(**replaced, **others)


def trace_forms(
    model: nn.Module,
    variables: Mapping[str, Any],
    structure: Structure,
    example: Example,
    precision: str,
    forms: tuple[type, ...],
) -> Any:
    """The jaxpr of a model with forms; nothing is computed.

    Args:
      structure: of the model before.
      forms: classes that its layers and norms must be of.

    Raises:
      ValueError: a layer or a norm has kept its class.
    """
    parts: set[LayerPath] = {*structure.layers, *structure.norms}

    def note(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if module.path in parts and not isinstance(module, forms):
            raise ValueError(
                f"layer {'/'.join(module.path)!r} keeps its class {type(module).__name__}: expected"
                " one that an attribute of the model names, as in `conv: ModuleDef = Conv`; no"
                " partial, no instance, no class written into the code of the model"
            )
        return call(*args, **kwargs)

    def forward(variables: Any, *inputs: Any) -> Any:
        with nn.intercept_methods(note):
            return model.apply(variables, *inputs, precision=precision)

    return jax.make_jaxpr(forward)(variables, *batch_of(example, 1)).jaxpr

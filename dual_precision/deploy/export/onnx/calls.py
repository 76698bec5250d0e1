"""Functions that a jaxpr calls: what reads traces looks into them."""

from collections.abc import Sequence
from typing import Any

_CALLS = ("jit", "pjit", "custom_jvp_call", "custom_vjp_call", "closed_call", "core_call")


def called_by(eqn: Any) -> tuple[Any, Sequence[Any]] | None:
    """(jaxpr, its constants) of the function that an equation calls; None of any other equation."""
    if eqn.primitive.name not in _CALLS:
        return None
    inner = eqn.params.get("jaxpr") or eqn.params.get("call_jaxpr")
    return getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())

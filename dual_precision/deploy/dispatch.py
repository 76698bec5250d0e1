"""Which thread computes what a request asks for."""

import logging

import jax
from jax._src import xla_bridge  # who else knows whether there are devices yet


def compute_in_calling_thread() -> bool:
    """Has XLA compute on CPUs in the thread that asks; True where it could.

    Else another thread does, while this one could go on; to wake it takes a tenth of the time of a
    request of one small image. For a process that does nothing but answer requests, before anything
    asks JAX for its devices: afterwards it is too late, and a log line says so.
    """
    if xla_bridge.backends_are_initialized():
        logging.warning("programs run in a thread of XLA: JAX has asked for its devices before")
        return False
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    return True

"""Losses on logits; all are means over the batch."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """-sum_k t_k log softmax(logits)_k, t = one-hot * (1 - smoothing) + smoothing / classes.

    Args:
      logits: [batch, classes]; labels: int [batch].
    """
    hot = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    targets = optax.smooth_labels(hot, smoothing)
    return jnp.mean(optax.softmax_cross_entropy(logits, targets))


def distillation(logits: jax.Array, teacher_logits: jax.Array) -> jax.Array:
    """KL(softmax(teacher) || softmax(logits)); no gradient reaches the teacher.

    Source: Hinton et al. 2015, arXiv 1503.02531, at temperature 1.
    """
    targets = jax.nn.log_softmax(jax.lax.stop_gradient(teacher_logits))
    return jnp.mean(
        optax.losses.kl_divergence_with_log_targets(jax.nn.log_softmax(logits), targets)
    )


def ensemble(logits: Sequence[jax.Array]) -> jax.Array:
    """log mean_m softmax(logits_m): the logits of an ensemble, whose softmax is the mean of theirs.

    Args:
      logits: of each member, [..., classes].
    """
    members = jnp.stack([jax.nn.log_softmax(own) for own in logits])
    return jax.nn.logsumexp(members, axis=0) - jnp.log(jnp.float32(len(logits)))

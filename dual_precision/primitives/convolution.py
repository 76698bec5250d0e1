"""Two-dimensional convolution.

Other formulations (im2col and one product, nine products, batch innermost) were measured on two CPU
cores and are slower than XLA's own once its library fusions are off, see training/compilation.py.
"""

import jax
from jax import lax


def conv2d(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Cross-correlation with symmetric zero padding (k - 1) / 2 on every side.

    Args:
      x: [N, H, W, in], float32.
      kernel: [k, k, in, out], float32, k odd.
      stride: in both directions.

    Returns:
      float32 [N, ceil(H / stride), ceil(W / stride), out].
    """
    pad = (kernel.shape[0] - 1) // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )

"""Convolutions of maps with few channels, with blocks of cells moved into the channels.

A TPU stores and multiplies 128 channels for a map of 32. Blocks of 2 x 2 cells as channels fill
them. The results are the same; the kernel over blocks has zeros outside a cell's neighbourhood.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Shaped


def to_blocks(
    x: Shaped[Array, "N H W channels"], side: int
) -> Shaped[Array, "N h w side_side_channels"]:
    """Move blocks of ``side`` x ``side`` cells into channels, ordered by row, column and channel.

    Raises:
        ValueError: a side of the map is not a multiple of ``side``.
    """
    num, height, width, channels = x.shape
    if height % side or width % side:
        raise ValueError(
            f"a map of {height} x {width} cells has no whole blocks of {side} x {side}"
        )
    x = x.reshape(num, height // side, side, width // side, side, channels)
    return x.swapaxes(2, 3).reshape(num, height // side, width // side, side * side * channels)


def average_of_blocks(
    x: Float[Array, "N h w side_side_channels"], side: int
) -> Float[Array, "N h w channels"]:
    """Return the mean over each block's cells: the average pool with windows of ``side``."""
    return sum(jnp.split(x, side * side, -1)) * (1 / (side * side))


def convolve_into_blocks(
    x: Float[Array, "N H W in"], kernel: Float[Array, "k k in out"], stride: int, side: int
) -> Float[Array, "N h w out_blocks"]:
    """Apply the padded convolution of ``ops.convolution``, from cells to blocks of ``side``."""
    size, half = kernel.shape[0], kernel.shape[0] // 2
    window, out = stride * (side - 1) + size, np.arange(side)
    taps = np.full((window, 1, side), size)
    for tap in range(size):
        taps[stride * out + tap, 0, out] = tap
    padding = half, window - half - side * stride
    return _convolve(x, _spread(kernel, taps), side * stride, padding)


def convolve_blocks(
    x: Float[Array, "N h w in_blocks"], kernel: Float[Array, "k k in out"], side: int
) -> Float[Array, "N h w out_blocks"]:
    """Apply the padded convolution of ``ops.convolution`` with stride 1, from blocks to blocks."""
    size = kernel.shape[0]
    out, tap = np.meshgrid(np.arange(side), np.arange(size), indexing="ij")
    block, cell = np.divmod(out + tap - size // 2, side)
    before, after = -block.min(), block.max()
    taps = np.full((before + after + 1, side, side), size)
    taps[block + before, cell, out] = tap
    return _convolve(x, _spread(kernel, taps), 1, (int(before), int(after)))


def _spread(kernel, taps: np.ndarray):
    """Return the kernel over blocks.

    Args:
        taps: [places, cells of an input block, cells of an output block], the same for both axes:
            the tap from one cell to the other; the kernel size where there is none.
    """
    kernel = jnp.pad(kernel, [(0, 1), (0, 1), (0, 0), (0, 0)])
    # [places, y in, y out, places, x in, x out, in, out]
    spread = kernel[jnp.asarray(taps)][:, :, :, jnp.asarray(taps)]
    places, cells_in, cells_out = taps.shape
    channels_in, channels_out = kernel.shape[2:]
    return spread.transpose(0, 3, 1, 4, 6, 2, 5, 7).reshape(
        places, places, cells_in**2 * channels_in, cells_out**2 * channels_out
    )


def _convolve(x, kernel, stride: int, padding: tuple[int, int]):
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [padding] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )

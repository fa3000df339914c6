"""Frame the object of a picture for an encoder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from polytok.core.errors import ConfigError, SignalError
from polytok.signals.image.io import WORKING_SIDE, plain

VISIBLE_ALPHA = 13
TOLERANCE = 16
BORDER_SHARE = 0.95


def framed(
    image: Image.Image,
    size: int,
    *,
    background: Sequence[int] = (255, 255, 255),
    fill: float = 0.85,
) -> NDArray[np.float32]:
    """Centre the object of an image in a square (3, size, size) with values in [0, 1].

    With transparency, the image is cropped to what is visible (alpha of at least 13 of 255), its
    longest side takes ``fill`` of the frame, and ``background`` shows through.

    Without it, the outermost pixels decide. If at least 95% of them are within 16 of 255, in
    every channel, of their median colour, that colour is a backdrop: the region of it that is
    connected to the border becomes transparent, and the rest is framed as above. Else, or if
    nothing but backdrop is there, the centre square of the image is used as it is.

    Args:
        image: of any mode. Above 4096 pixels a side it is reduced first.
        size: pixels per side. background: (red, green, blue) in 0..255. fill: in (0, 1].

    Raises:
        SignalError: the image is wholly transparent, or one that :func:`plain` refuses.
        ConfigError: a setting is out of range.
    """
    if size < 1:
        raise ConfigError(f"size={size} is not positive")
    if not 0 < fill <= 1:
        raise ConfigError(f"fill={fill} is not within (0, 1]")
    if len(background) != 3 or not all(0 <= c <= 255 for c in background):
        raise ConfigError(f"background={tuple(background)} is not three values in 0..255")
    image = plain(image)
    if (factor := -(-max(image.size) // WORKING_SIDE)) > 1:
        image = image.reduce(factor)
    if image.mode == "RGBA" and image.getchannel("A").getextrema()[0] == 255:
        image = image.convert("RGB")
    if image.mode == "RGB":
        cut = _without_backdrop(image)
        if cut is None:
            square = min(image.size)
            left, top = (image.width - square) // 2, (image.height - square) // 2
            box = (left, top, left + square, top + square)
            shown = image.crop(box).resize((size, size), Image.Resampling.BICUBIC)
            return _channels_first(np.asarray(shown, np.float32))
        image = cut
    return _composed(image, size, np.asarray(background, np.float32), fill)


def _without_backdrop(image: Image.Image) -> Image.Image | None:
    """Make the one-coloured surroundings transparent; None if there are none, or nothing else."""
    pixels = np.asarray(image)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    colour = np.median(border, axis=0).astype(np.int16)
    if (np.abs(border - colour).max(1) <= TOLERANCE).mean() < BORDER_SHARE:
        return None
    labels, count = ndimage.label(np.abs(pixels - colour).max(2) <= TOLERANCE)
    is_outside = np.zeros(count + 1, bool)
    is_outside[np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])] = True
    is_outside[0] = False
    inside = ~is_outside[labels]
    if not inside.any():
        return None
    cut = image.copy()
    cut.putalpha(Image.fromarray(inside.astype(np.uint8) * 255))
    return cut


def _composed(
    image: Image.Image, size: int, background: NDArray[np.float32], fill: float
) -> NDArray[np.float32]:
    """Crop to what is visible, fit it into the frame, and lay it over the background."""
    alpha = image.getchannel("A")
    box = alpha.point([255 * (a >= VISIBLE_ALPHA) for a in range(256)]).getbbox()
    if box is None:
        raise SignalError(
            f"nothing is visible: the largest alpha is {alpha.getextrema()[1]} of 255"
        )
    sides = box[2] - box[0], box[3] - box[1]
    scale = fill * size / max(sides)
    width, height = (max(1, round(side * scale)) for side in sides)
    # Pillow weighs colours by alpha when it resizes, so hidden colours do not bleed in. Given the
    # box there, it would also look at pixels around it.
    small = image.crop(box).resize((width, height), Image.Resampling.BICUBIC)
    values = np.asarray(small, np.float32)
    opacity = values[..., 3:] / 255
    left, top = (size - width) // 2, (size - height) // 2
    frame = np.broadcast_to(background, (size, size, 3)).copy()
    part = frame[top : top + height, left : left + width]
    part += opacity * (values[..., :3] - part)
    return _channels_first(frame)


def _channels_first(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.ascontiguousarray(values.transpose(2, 0, 1) / np.float32(255))

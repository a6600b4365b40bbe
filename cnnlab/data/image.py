"""One image from anywhere, made to fit a network's input."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

import numpy as np

from cnnlab.errors import InputError

if TYPE_CHECKING:
    import PIL.Image


def fit(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Scale the shorter side (antialiased, bilinear), cut out the centre, make the channels fit.

    Args:
      image: uint8[h, w, c].
      shape: (H, W, C) wanted, C being 1 or 3.

    Returns:
      uint8[H, W, C]; the image itself if it has that shape.
    """
    if image.shape == shape:
        return image
    from PIL import Image

    return _fit(Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image), shape)


def _fit(picture: PIL.Image.Image, shape: tuple[int, ...]) -> np.ndarray:
    from PIL import Image

    height, width, channels = shape
    picture = picture.convert("L" if channels == 1 else "RGB")
    scale = min(picture.height / height, picture.width / width)  # picture pixels per pixel wanted
    left, top = (picture.width - width * scale) / 2, (picture.height - height * scale) / 2
    box = left, top, left + width * scale, top + height * scale
    return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR, box=box)).reshape(
        shape
    )


def read(path: str | os.PathLike[str], shape: tuple[int, ...]) -> np.ndarray:
    """Read an image file of any size and mode: turned as its EXIF says, transparency over white, 16
    bits to 8.

    Args:
      path: PNG, JPEG or whatever Pillow reads.
      shape: (H, W, C) wanted.

    Returns:
      uint8[H, W, C].

    Raises:
      InputError: no such file, or no image.
    """
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as picture:
            picture.load()
            picture = ImageOps.exif_transpose(picture)
    except FileNotFoundError as error:
        raise InputError(f"there is no image file {path}") from error
    # Pillow's readers raise anything on damaged files, struct.error among them.
    except Exception as error:
        raise InputError(f"{path} cannot be read as an image ({error})") from error
    if picture.mode.startswith(("I", "F")):  # convert("L") would clip, not scale
        values = np.nan_to_num(np.asarray(picture, np.float64))
        # The file does not say its range: the smallest usual one that holds the values.
        top = next((top for top in (1.0, 255.0, 65535.0) if values.max() <= top), values.max())
        top = (
            65535.0
            if picture.mode.startswith("I;16")
            else max(top, 255.0)
            if picture.mode == "I"
            else top
        )
        picture = Image.fromarray(np.clip(values / top * 255, 0, 255).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return _fit(picture, shape)

"""One decoder of image files, for training, evaluation and prediction alike.

`decode` gives the pixels that TensorFlow's `tf.image.decode_image` gives for 1 or 3 channels:

- JPEG: libjpeg-turbo's fast integer transform. One channel is the luma that the file stores. CMYK
  is converted by the product with black, as Adobe stores it.
- PNG, GIF, BMP, WebP: palettes are looked up, 1, 2 and 4 bits are spread over 0..255, of 16 bits
  the upper 8 are kept, and of an animation the first frame. One channel of a colour image is its
  luma of ITU-R BT.601.
- An EXIF orientation is ignored, and so is transparency: a pixel has the colour that is stored,
  however transparent it is (in a GIF, which stores none there, black; so is what its first frame
  leaves of the canvas).

TensorFlow refuses some of these files, reads palette indices (BMP), or cuts the canvas to the
largest frame (GIF); here each is its colours, all of them.
"""

from __future__ import annotations

import io
import os
import stat
import warnings
from typing import TYPE_CHECKING

import numpy as np

from cnnlab.errors import InputError, one_line

if TYPE_CHECKING:
    import PIL.GifImagePlugin
    import PIL.Image

# Part of the names of what is cached: raise it when some file gives other pixels.
DECODER_VERSION = 4
FORMATS = ("PNG", "GIF", "BMP", "WEBP")  # those that Pillow decodes; not EPS, which runs a program
MOST_PIXELS = 100_000_000  # of an image: a small file may claim any size
MOST_BYTES = 1 << 30  # of a file
JPEG = b"\xff\xd8\xff"
ADOBE = b"\xff\xee\x00\x0eAdobe"  # a marker: its CMYK is stored inverted
PNG_COLOURS, GREY_ALPHA = 25, 4  # the place of a byte in the header of a PNG, and a value of it
TRUNCATED = "Premature end of JPEG file"
# Of red, green and blue in the luma of BT.601, in 1/32768, as libpng rounds them.
LUMA = np.array([9797, 19234, 3737])


def decode(data: bytes, channels: int) -> np.ndarray:
    """Decode an image file.

    Args:
      data: contents of a JPEG, PNG, GIF, BMP or WebP file.
      channels: wanted, 1 or 3; 0 for those of the file, 1 if it is grey.

    Returns:
      uint8[h, w, 1 or 3].

    Raises:
      ValueError: another format, or a damaged file. Pillow's readers raise anything on those.
    """
    pixels = _decode_jpeg(data, channels) if data.startswith(JPEG) else _decode_other(data)
    return with_channels(pixels, channels or pixels.shape[-1])


def _decode_jpeg(data: bytes, channels: int) -> np.ndarray:
    """Decode a JPEG file: uint8[h, w, 1 or 3]."""
    import simplejpeg

    try:
        height, width, stored, _ = simplejpeg.decode_jpeg_header(data)
    except KeyError as error:  # 4:4:1
        raise ValueError("its colours are sampled in a way that is not supported") from error
    _check_size(int(height), int(width))
    cmyk = stored in ("CMYK", "YCCK")
    grey = channels == 1 or (channels == 0 and stored == "Gray")
    colours = "CMYK" if cmyk else "GRAY" if grey else "RGB"
    try:
        pixels = simplejpeg.decode_jpeg(data, colours, fastdct=True)
    except ValueError as error:
        if str(error) == TRUNCATED:
            raise
        pixels = simplejpeg.decode_jpeg(data, colours, fastdct=True, strict=False)
    if not cmyk:
        return pixels
    inks = pixels.astype(np.int32) if ADOBE in data else 255 - pixels.astype(np.int32)
    return (inks[..., 3:] * inks[..., :3] // 255).astype(np.uint8)


def _decode_other(data: bytes) -> np.ndarray:
    """Decode a file of `FORMATS`: uint8[h, w, 1 or 3]."""
    from PIL import Image, UnidentifiedImageError
    from PIL.GifImagePlugin import GifImageFile

    try:
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(io.BytesIO(data), formats=FORMATS) as picture,
        ):
            _check_size(picture.height, picture.width)
            if isinstance(picture, GifImageFile):
                return _first_frame(picture)
            picture.load()
            # Of 16 bits Pillow makes colours
            is_grey = picture.format == "PNG" and data[PNG_COLOURS] == GREY_ALPHA
            return _pixels(picture)[..., : 1 if is_grey else None]
    except UnidentifiedImageError as error:
        raise ValueError("not a JPEG, PNG, GIF, BMP or WebP file") from error


def _check_size(height: int, width: int) -> None:
    """Refuse an image that would take all memory, before it is decoded.

    Raises:
      ValueError: it is too large.
    """
    if height * width > MOST_PIXELS:
        raise ValueError(
            f"{width:,} x {height:,} pixels; up to {MOST_PIXELS:,} pixels are decoded: make it "
            "smaller"
        )


def _pixels(picture: PIL.Image.Image) -> np.ndarray:
    """Return a picture's pixels without transparency: uint8[h, w, 1 or 3]."""
    if picture.mode.startswith("I"):  # 16 bits
        return (np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8)[..., None]
    if picture.mode in ("1", "L", "LA"):
        return np.asarray(picture.convert("L"))[..., None]
    return np.asarray(picture.convert("RGBA" if picture.mode == "RGBA" else "RGB"))[..., :3]


def _first_frame(picture: PIL.GifImagePlugin.GifImageFile) -> np.ndarray:
    """Return the canvas of a GIF with its first frame, black where that draws nothing:
    uint8[h, w, 1 or 3].
    """
    left, top, right, bottom = picture.tile[0].extents or (0, 0, *picture.size)
    indices = np.asarray(picture)
    is_drawn = np.zeros(indices.shape, bool)
    is_drawn[top:bottom, left:right] = True
    is_drawn &= indices != picture.info.get("transparency", -1)
    return np.where(is_drawn[..., None], _pixels(picture), np.uint8(0))


def with_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Convert uint8[h, w, 1 or 3] to as many channels as are wanted: grey to colour or to luma."""
    if pixels.shape[-1] == channels:
        return pixels
    if channels == 3:
        return np.repeat(pixels, 3, -1)
    return (pixels @ LUMA >> 15).astype(np.uint8)[..., None]


def fit(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Scale the shorter side (antialiased, bilinear), cut out the centre, make the channels fit.

    Args:
      image: uint8[h, w, 1 or 3].
      shape: (H, W, C) wanted, C being 1 or 3.

    Returns:
      uint8[H, W, C]; the image itself if it has that shape.
    """
    if image.shape == shape:
        return image
    from PIL import Image

    height, width, channels = shape
    image = with_channels(image, channels)
    if image.shape == shape:
        return image
    picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    scale = min(picture.height / height, picture.width / width)  # picture pixels per pixel wanted
    left, top = (picture.width - width * scale) / 2, (picture.height - height * scale) / 2
    box = left, top, left + width * scale, top + height * scale
    scaled = picture.resize((width, height), Image.Resampling.BILINEAR, box=box)
    return np.asarray(scaled).reshape(shape)


def read(path: str | os.PathLike[str], shape: tuple[int, ...]) -> np.ndarray:
    """Read an image file of any size, made to fit.

    Args:
      path: of a regular file, as `decode` takes it.
      shape: (H, W, C) wanted.

    Returns:
      uint8[H, W, C].

    Raises:
      InputError: no such file, or no image.
    """
    try:
        return fit(decode(contents(path), shape[-1]), shape)
    except FileNotFoundError as error:
        raise InputError(f"there is no image file {os.fspath(path)}") from error
    # Pillow's readers raise anything on damaged files, struct.error among them.
    except Exception as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
        raise InputError(f"{os.fspath(path)} cannot be read as an image ({why})") from error


def contents(path: str | os.PathLike[str]) -> bytes:
    """Read a regular file that may be an image. It never waits, as a pipe or a device would let
    it.

    Raises:
      OSError: it cannot be read.
      ValueError: no regular file, or one without content or with too much.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("not a regular file")
    if not status.st_size:  # a file of /proc, perhaps
        raise ValueError("an empty file")
    if status.st_size > MOST_BYTES:
        raise ValueError(f"{status.st_size:,} bytes; up to {MOST_BYTES:,} are read")
    with open(path, "rb") as file:
        return file.read(status.st_size)

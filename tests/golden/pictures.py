"""Small pictures in many file formats with the pixels that TensorFlow's decoder gives for them.

    python tests/golden/pictures.py    # rewrites pictures.json

Needs tensorflow and pillow. A row reads {"file": base64 of its bytes, "1", "3": base64 of the
pixels uint8[height, width, channels] of tf.image.decode_image(file, channels,
expand_animations=False), or the reason why it refuses}.
"""

import base64
import io
import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import tensorflow as tf

HEIGHT, WIDTH = 9, 11
SHAPE = (HEIGHT, WIDTH)
GREY, COLOUR, GREY_ALPHA = 0, 2, 4  # colour types of PNG


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    checksum = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def png16(pixels: np.ndarray, colour_type: int) -> bytes:
    """Write a PNG of 16 bits, uint16[h, w, channels], which Pillow writes for one channel only."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def without_adobe_marker(jpeg: bytes) -> bytes:
    start = jpeg.index(b"\xff\xee\x00\x0eAdobe")
    return jpeg[:start] + jpeg[start + 16 :]


def pictures() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (*SHAPE, 3), np.uint8)
    opacity = rng.integers(0, 256, (*SHAPE, 1), np.uint8)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    smooth = Image.fromarray(np.stack([22 * x, 27 * y, 12 * (x + y)], -1).astype(np.uint8))
    colour = Image.fromarray(noise)
    rgba = Image.fromarray(np.concatenate([noise, opacity], -1))
    palette = colour.quantize(16)
    first = tuple(noise[0, 0].tolist())
    frames = [Image.fromarray(np.roll(noise, 3, 1)).quantize(16)]
    turned = Image.Exif()
    turned[0x112] = 6  # orientation: to be turned by 90 degrees
    return {
        "png": encoded(colour, "PNG"),
        "png, palette": encoded(palette, "PNG"),
        "png, palette with transparency": encoded(palette, "PNG", transparency=3),
        "png, colour with transparency": encoded(colour, "PNG", transparency=first),
        "png, alpha": encoded(rgba, "PNG"),
        "png, grey": encoded(colour.convert("L"), "PNG"),
        "png, grey with alpha": encoded(rgba.convert("LA"), "PNG"),
        "png, 1 bit": encoded(colour.convert("1"), "PNG"),
        "png, 2 bit palette": encoded(colour.quantize(4), "PNG", bits=2),
        "png, 16 bit grey": png16(rng.integers(0, 2**16, (*SHAPE, 1), np.uint16), GREY),
        "png, 16 bit grey with alpha": png16(
            rng.integers(0, 2**16, (*SHAPE, 2), np.uint16), GREY_ALPHA
        ),
        "png, 16 bit colour": png16(rng.integers(0, 2**16, (*SHAPE, 3), np.uint16), COLOUR),
        "png, EXIF": encoded(colour, "PNG", exif=turned),
        "jpeg": encoded(smooth, "JPEG", quality=75),
        "jpeg, noise": encoded(colour, "JPEG", quality=90, subsampling=0),
        "jpeg, progressive": encoded(colour, "JPEG", progressive=True),
        "jpeg, grey": encoded(colour.convert("L"), "JPEG"),
        "jpeg, CMYK": encoded(smooth.convert("CMYK"), "JPEG"),
        "jpeg, CMYK without Adobe's marker": without_adobe_marker(
            encoded(smooth.convert("CMYK"), "JPEG")
        ),
        "jpeg, EXIF": encoded(smooth, "JPEG", exif=turned),
        "gif": encoded(palette, "GIF"),
        "gif, transparency": encoded(palette, "GIF", transparency=3),
        "gif, animation": encoded(palette, "GIF", save_all=True, append_images=frames),
        "gif, grey": encoded(colour.convert("L"), "GIF"),
        "bmp": encoded(colour, "BMP"),
        "bmp, grey": encoded(colour.convert("L"), "BMP"),
        "bmp, alpha": encoded(rgba, "BMP"),
        "bmp, palette": encoded(palette, "BMP"),
        "bmp, 1 bit": encoded(colour.convert("1"), "BMP"),
        "webp": encoded(smooth, "WEBP", quality=80),
        "webp, lossless": encoded(colour, "WEBP", lossless=True),
        "webp, alpha": encoded(rgba, "WEBP", lossless=True, exact=True),
    }


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def decoded(file: bytes, channels: int) -> dict[str, object]:
    try:
        pixels = tf.image.decode_image(file, channels=channels, expand_animations=False).numpy()
    except tf.errors.OpError as error:
        return {"refused": error.message.partition("}} ")[2].partition(" [Op")[0]}
    assert pixels.shape == (*SHAPE, channels)
    return {"pixels": text(pixels.tobytes())}


def main() -> None:
    rows = {
        name: {"file": text(file), **{str(c): decoded(file, c) for c in (1, 3)}}
        for name, file in pictures().items()
    }
    table = {"tensorflow": tf.__version__, "shape": SHAPE, "pictures": rows}
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""A small picture under the distortions of CIFAR-10-C, by scikit-image and Pillow.

    python tests/golden/distortions.py    # rewrites distortions.json

Needs scikit-image and pillow. {"picture": base64 of uint8[12, 10, 3], NAME: [base64 of the
distorted picture for severity 1, ..., 5]}, by the recipe of Hendrycks & Dietterich, 2019, arXiv
1903.12261, for CIFAR-10; its noise is not here, as its draws are those of another generator.
"""

import base64
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import color, filters

SHAPE = (12, 10, 3)


def picture() -> np.ndarray:
    """Noise, a ramp of colours, and corners that are black, white and grey."""
    drawn = np.random.default_rng(7).integers(0, 256, SHAPE)
    down, right = np.mgrid[:6, :10]
    drawn[6:] = np.stack([25 * right, 40 * down, np.full_like(down, 127)], -1)
    drawn[:2, :2] = 0
    drawn[:2, -2:] = 255
    drawn[-2:, :2] = 90
    return drawn.astype(np.uint8)


def blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    return np.clip(filters.gaussian(image / 255.0, sigma=sigma, channel_axis=-1), 0, 1) * 255


def brighter(image: np.ndarray, added: float) -> np.ndarray:
    hsv = color.rgb2hsv(image / 255.0)
    hsv[..., 2] = np.clip(hsv[..., 2] + added, 0, 1)
    return np.clip(color.hsv2rgb(hsv), 0, 1) * 255


def flatter(image: np.ndarray, factor: float) -> np.ndarray:
    values = image / 255.0
    means = np.mean(values, axis=(0, 1), keepdims=True)
    return np.clip((values - means) * factor + means, 0, 1) * 255


def compressed(image: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file))


RECIPES = {
    "gaussian_blur": (blurred, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "brightness": (brighter, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (flatter, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "jpeg_compression": (compressed, (80, 65, 58, 50, 40)),
}


def text(image: np.ndarray) -> str:
    return base64.b64encode(np.uint8(image).tobytes()).decode()


if __name__ == "__main__":
    image = picture()
    rows = {"picture": text(image)} | {
        name: [text(distort(image, value)) for value in values]
        for name, (distort, values) in RECIPES.items()
    }
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")

"""Augmentation of single images from the cached arrays, by albumentations: the same draw for the same seed, in any process."""

import albumentations as A
import cv2
import numpy as np
from numpy.typing import NDArray

from quintet.params.breakhis import BreakHisAugment

cv2.setNumThreads(0)  # threads within threads only cost
MOST_BLUR = (3, 5)  # pixels
ERASED = (0.02, 0.15)  # share of the image


class Augmentation:
    """Flips, rotation, elastic deformation, blur, colour jitter, random erasing; `[H, W, 3]` uint8 in and out."""

    def __init__(self, how: BreakHisAugment) -> None:
        jitter = how.colour_jitter
        self.transforms = A.Compose(
            [
                A.HorizontalFlip(p=how.flip),
                A.VerticalFlip(p=how.flip),
                A.Rotate(limit=how.rotation_deg, border_mode=cv2.BORDER_REFLECT_101, p=how.rotation),
                A.ElasticTransform(alpha=20, sigma=5, p=how.elastic),
                A.GaussianBlur(blur_limit=MOST_BLUR, p=how.blur),
                A.ColorJitter(brightness=jitter, contrast=jitter, saturation=jitter, hue=0.1 * jitter, p=how.colour),
                A.Erasing(scale=ERASED, fill="random_uniform", p=how.erase),
            ]
        )

    def seed(self, seed: int) -> None:
        self.transforms.set_random_seed(seed)

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return self.transforms(image=image)["image"]

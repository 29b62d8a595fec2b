"""Augmentation of single images by albumentations: the same seed gives the same result in any process."""

import albumentations as A
import cv2
import numpy as np
from numpy.typing import NDArray

from quintet.params.breakhis import BreakHisAugment

cv2.setNumThreads(0)  # OpenCV's own threads slow down the processes that load data
BLUR_KERNEL = (3, 5)  # smallest and largest, pixels
ERASED_SHARE = (0.02, 0.15)  # smallest and largest, of the image's area


class Augmentation:
    """Flips, rotation, elastic deformation, blur, colour jitter and random erasing of uint8 images `[H, W, 3]`."""

    def __init__(self, augment: BreakHisAugment) -> None:
        jitter = augment.colour_jitter
        transforms: list[A.BasicTransform] = [
            A.HorizontalFlip(p=augment.flip),
            A.VerticalFlip(p=augment.flip),
            A.Rotate(limit=augment.rotation_deg, border_mode=cv2.BORDER_REFLECT_101, p=augment.rotation),
            A.ElasticTransform(alpha=20, sigma=5, p=augment.elastic),
            A.GaussianBlur(blur_limit=BLUR_KERNEL, p=augment.blur),
            A.ColorJitter(brightness=jitter, contrast=jitter, saturation=jitter, hue=0.1 * jitter, p=augment.colour),
            A.Erasing(scale=ERASED_SHARE, fill="random_uniform", p=augment.erase),
        ]
        self.transforms = A.Compose([transform for transform in transforms if transform.p > 0])  # each call costs time

    def seed(self, seed: int) -> None:
        # Compose would give each transform the same seed, hence the same numbers: both flips would come together or not at all
        rng = np.random.default_rng(seed)
        for transform in self.transforms.transforms:
            transform.set_random_seed(int(rng.integers(2**31)))

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return self.transforms(image=image)["image"]

"""Data loading and training step of the landmarks study compared with the usual PyTorch approach, side by side.

    python benchmarks/landmarks.py [--raw FOLDER] [--rounds 3] [--seconds 8] [--arch unet] [--size 64] [--batch 16]

Ours: one uint8 array, whole batches augmented on the device. Peers: a Dataset and DataLoader that decode PNG and augment one
image at a time with albumentations (0 and 2 workers), and our batches augmented by kornia. The variants take turns, each in its
own process (so that each has its own peak memory), and medians over the rounds are compared. Expected: about 7 minutes.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from turns import take_turns

from quintet.landmarks.data.anatomy import SWAPPED
from quintet.landmarks.data.prepare import Row, prepare, read_annotations
from quintet.landmarks.data.prepared import Prepared, load
from quintet.landmarks.model.augmentation import augment
from quintet.landmarks.model.module import LandmarkModule, Rows, images_and_points
from quintet.landmarks.model.networks import LandmarkNet
from quintet.params import Landmarks
from quintet.params import load as load_params
from quintet.params.landmarks import LandmarksAugment
from quintet.training.batches import batch_loader
from quintet.training.hardware import peak_memory_mb, resolve_precision

INPUTS = ("ours", "kornia", "decode-0-workers", "decode-2-workers")
STEPS = ("ours", "ours-float32-nchw", "decode-0-workers-float32", "decode-2-workers-float32", "ours-bf16")


class Decoding(Dataset[tuple[Tensor, Tensor]]):
    """What a tutorial does: open the PNG, resize, augment with albumentations, convert to a tensor, normalise."""

    def __init__(self, rows: list[Row], size: int, params: LandmarksAugment) -> None:
        import albumentations as A

        self.rows = rows
        self.transform = A.Compose(
            [
                A.Resize(size, size),
                A.Affine(
                    rotate=(-params.rotation_deg, params.rotation_deg),
                    scale=(1 - params.scale, 1 + params.scale),
                    translate_percent=(-params.shift, params.shift),
                ),
                A.RandomBrightnessContrast(params.brightness, params.contrast, p=1),
            ],
            keypoint_params=A.KeypointParams("xy", remove_invisible=False),
        )
        self.flip, self.size = params.flip, size

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        from PIL import Image

        row = self.rows[index]
        image = np.asarray(Image.open(row.file).convert("L"))
        points = row.points_px
        if np.random.random() < self.flip:
            image = np.ascontiguousarray(image[:, ::-1])
            points = points[SWAPPED] * [-1, 1] + [image.shape[1], 0]
        augmented = self.transform(image=image, keypoints=points)
        tensor = torch.from_numpy(augmented["image"])[None].float() / 255
        return tensor, torch.from_numpy(np.array(augmented["keypoints"])).float() / self.size


def with_kornia(params: LandmarksAugment) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The same augmentation, composed of kornia's transforms; the exchange of paired landmarks has to be added by hand."""
    import kornia.augmentation as K

    transform = K.AugmentationSequential(
        K.RandomAffine(params.rotation_deg, (params.shift, params.shift), (1 - params.scale, 1 + params.scale), p=1),
        K.RandomBrightness((1 - params.brightness, 1 + params.brightness), p=1),
        K.RandomContrast((1 - params.contrast, 1 + params.contrast), p=1),
        data_keys=["input", "keypoints"],
    )

    def apply(images: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        flip = torch.rand(len(images)) < params.flip
        images = torch.where(flip[:, None, None, None], images.flip(-1), images)
        mirrored = points[:, torch.as_tensor(SWAPPED)] * torch.tensor([-1.0, 1.0]) + torch.tensor([1.0, 0.0])
        size = images.shape[-1]
        images, moved = transform(images, torch.where(flip[:, None, None], mirrored, points) * size)
        return images, moved / size

    return apply


def stream(
    variant: str, prepared: Prepared, rows: list[Row], params: LandmarksAugment, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless augmented batches (images [B, 1, S, S] in [0, 1], points [B, 15, 2])."""
    if variant.startswith("decode"):
        workers = int(variant.split("-")[1])
        dataset = Decoding(rows, prepared.images.shape[-1], params)
        persistent = workers > 0
        loader: Any = DataLoader(
            dataset, batch_size, shuffle=True, num_workers=workers, persistent_workers=persistent, drop_last=True
        )
        while True:
            yield from loader
    apply = with_kornia(params) if variant == "kornia" else lambda images, points: augment(images, points, params)
    index = np.arange(len(prepared.images))
    loader = batch_loader(Rows(prepared), index, batch_size, seed=0, shuffle=True)
    cases = images_and_points(prepared)
    while True:
        for item in loader:
            if len(item["rows"]) == batch_size:
                images, points = cases[item["rows"]]
                yield apply(images.float() / 255, points)


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Images per second of one variant, and this process's peak memory."""
    params = load_params().landmarks
    rows, _ = read_annotations(Path(options.raw))
    source = stream(options.variant, load(Path(options.prepared)), rows, params.training.augment, options.batch)
    advance: Callable[[], object] = lambda: next(source)  # noqa: E731
    if options.part == "step":
        advance = training_step(options, source, params)
    for _ in range(3):
        advance()
    started, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < options.seconds:
        advance()
        count += options.batch
    return {"images_per_s": count / elapsed, "peak_memory_mb": peak_memory_mb()}


def training_step(
    options: argparse.Namespace, source: Iterator[tuple[Tensor, Tensor]], params: Landmarks
) -> Callable[[], object]:
    """Forward, loss, backward, Adam. Ours: configured precision, channels-last, fused Adam; the others: PyTorch's defaults."""
    torch.manual_seed(0)
    plain = "float32" in options.variant
    config = params.configs["heatmap"] if options.arch == "unet" else params.configs["finetune"]
    training = params.training
    net = LandmarkNet(
        arch=config.arch, head=config.head, attention=config.attention, width=training.width, dropout=training.dropout
    )
    layout = torch.contiguous_format if plain else torch.channels_last
    net = net.to(memory_format=layout)  # type: ignore[call-overload]
    module = LandmarkModule(net, config, training, images_and_points(load(Path(options.prepared))))
    bf16 = options.variant == "ours-bf16" or (not plain and resolve_precision(training.precision, "cpu") == "bf16")
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4, fused=None if plain else True)  # as training/fit.py does

    def step() -> None:
        images, points = next(source)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            found = net(images.contiguous(memory_format=layout))
        loss = module.loss(found, points)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def show(title: str, results: dict[str, dict[str, float]]) -> None:
    print(f"\n{title}\n{'variant':28} {'images/s':>9} {'ours is':>9} {'peak MiB':>9}")
    ours = results["ours"]["images_per_s"]
    for name, row in results.items():
        print(f"{name:28} {row['images_per_s']:9.0f} {ours / row['images_per_s']:8.2f}x {row['peak_memory_mb']:9.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", help="raw folder (default: phantoms drawn for this run)")
    parser.add_argument("--prepared", help=argparse.SUPPRESS)
    parser.add_argument("--part", choices=["input", "step"], help=argparse.SUPPRESS)
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--arch", default="unet", choices=["unet", "resnet18"])
    parser.add_argument("--size", type=int, default=64, help="pixels; params.yaml has 64, the preset best 128")
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(measure(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        if options.raw is None:
            from quintet.landmarks.synthetic import synthesize

            options.raw = f"{folder}/raw"
            synthesize(Path(options.raw), images=200, size=299, seed=0, label_noise_px=2.0, workers=2)
        options.prepared = f"{folder}/prepared"
        params = load_params().landmarks
        data = params.data.model_copy(update={"size": options.size, "split": "reference"})
        prepare(Path(options.raw), Path(options.prepared), params.model_copy(update={"data": data}))
        precision = resolve_precision(params.training.precision, "cpu")
        print(
            f"{options.arch}, {options.size} px, batch {options.batch}, {torch.get_num_threads()} threads, precision {precision}"
        )
        passed_on = {key: getattr(options, key) for key in ("raw", "prepared", "seconds", "arch", "size", "batch")}
        show("Data loading alone", take_turns(__file__, INPUTS, passed_on | {"part": "input"}, rounds=options.rounds))
        steps = take_turns(__file__, STEPS, passed_on | {"part": "step"}, rounds=options.rounds)
        show("Whole training step", steps)
        speed = {name: row["images_per_s"] for name, row in steps.items()}
        print(
            f"precision, layout and optimiser: {speed['ours'] / speed['ours-float32-nchw']:.2f}x; data loading: "
            f"{speed['ours-float32-nchw'] / speed['decode-2-workers-float32']:.2f}x compared with 2 workers, "
            f"{speed['ours-float32-nchw'] / speed['decode-0-workers-float32']:.2f}x with none"
        )


if __name__ == "__main__":
    main()

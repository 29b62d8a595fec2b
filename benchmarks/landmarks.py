"""Input path and training step of the landmarks study against the usual PyTorch way, side by side in one run.

    python benchmarks/landmarks.py [--raw FOLDER] [--rounds 3] [--seconds 8] [--arch unet] [--size 64] [--batch 16]

Ours: one uint8 array, whole batches augmented on the device. Peers: a Dataset and DataLoader that decode PNG and augment image by
image with albumentations (0 and 2 workers), and our batches augmented by kornia. Every variant runs in a process of its own (so
that peak memory is its own), the variants take turns, and medians over the rounds are compared. Expected: about 7 minutes.
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
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from turns import take_turns

from quintet.landmarks.data.anatomy import SWAPPED
from quintet.landmarks.data import prepared as data
from quintet.landmarks.model.augmentation import augment
from quintet.landmarks.model.losses import wing
from quintet.landmarks.model.module import Batches
from quintet.landmarks.model.networks import LandmarkNet
from quintet.params import Landmarks, load
from quintet.training.batches import batch_loader
from quintet.training.hardware import peak_memory_mb, resolve_precision

INPUTS = ("ours", "kornia", "decode-0-workers", "decode-2-workers")
STEPS = ("ours", "ours-float32-nchw", "decode-0-workers-float32", "decode-2-workers-float32", "ours-bf16")


class Decoding(Dataset[tuple[Tensor, Tensor]]):
    """What a landmark tutorial does: open the PNG, resize, augment with albumentations, normalise, to tensor."""

    def __init__(self, rows: list[data.Row], size: int, how: Landmarks) -> None:
        import albumentations as A

        self.rows, a = rows, how.augment
        self.geometry = A.Compose(
            [
                A.Resize(size, size),
                A.Affine(
                    rotate=(-a.rotation_deg, a.rotation_deg),
                    scale=(1 - a.scale, 1 + a.scale),
                    translate_percent=(-a.shift, a.shift),
                ),
                A.RandomBrightnessContrast(a.brightness, a.contrast, p=1),
            ],
            keypoint_params=A.KeypointParams("xy", remove_invisible=False),
        )
        self.flip, self.size = a.flip, size

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
        done = self.geometry(image=image, keypoints=points)
        return torch.from_numpy(done["image"])[None].float() / 255, torch.from_numpy(
            np.array(done["keypoints"])
        ).float() / self.size


def with_kornia(how: Landmarks) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The same augmentation composed of kornia's; the exchange of paired landmarks has to be added by hand."""
    import kornia.augmentation as K

    a = how.augment
    steps = K.AugmentationSequential(
        K.RandomAffine(a.rotation_deg, (a.shift, a.shift), (1 - a.scale, 1 + a.scale), p=1),
        K.RandomBrightness((1 - a.brightness, 1 + a.brightness), p=1),
        K.RandomContrast((1 - a.contrast, 1 + a.contrast), p=1),
        data_keys=["input", "keypoints"],
    )

    def apply(images: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        flip = torch.rand(len(images)) < a.flip
        images = torch.where(flip[:, None, None, None], images.flip(-1), images)
        mirrored = points[:, torch.as_tensor(SWAPPED)] * torch.tensor([-1.0, 1.0]) + torch.tensor([1.0, 0.0])
        side = images.shape[-1]
        images, moved = steps(images, torch.where(flip[:, None, None], mirrored, points) * side)
        return images, moved / side

    return apply


def stream(
    variant: str, prepared: data.Prepared, rows: list[data.Row], how: Landmarks, batch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless augmented batches (images [B, 1, S, S] in [0, 1], points [B, 15, 2])."""
    if variant.startswith("decode"):
        workers = int(variant.split("-")[1])
        loader: Any = DataLoader(
            Decoding(rows, how.size, how),
            batch,
            shuffle=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            drop_last=True,
        )
        while True:
            yield from loader
    change = with_kornia(how) if variant == "kornia" else lambda images, points: augment(images, points, how.augment)
    index = np.arange(len(prepared.images))
    loader = batch_loader(Batches(prepared, index), index, batch, seed=0, shuffle=True)
    while True:
        for item in loader:
            if len(item["images"]) == batch:
                yield change(item["images"].float() / 255, item["points"])


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Images a second of one variant, and this process's peak memory."""
    how = load().landmarks.model_copy(update={"size": options.size})
    prepared = data.load(Path(options.prepared))
    rows, _ = data.read_annotations(Path(options.raw))
    source = stream(options.variant, prepared, rows, how, options.batch)
    advance: Callable[[], object] = lambda: next(source)  # noqa: E731
    if options.part == "step":
        advance = training_step(options, source, how)
    for _ in range(3):
        advance()
    started, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - started) < options.seconds:
        advance()
        count += options.batch
    return {"images_per_s": count / passed, "peak_memory_mb": peak_memory_mb()}


def training_step(options: argparse.Namespace, source: Iterator[tuple[Tensor, Tensor]], how: Landmarks) -> Callable[[], object]:
    """Forward, loss, backward, Adam; ours in automatic precision, channels-last, fused Adam; the others as PyTorch starts."""
    torch.manual_seed(0)
    plain = "float32" in options.variant
    head = "heatmap" if options.arch == "unet" else "regression"
    net: nn.Module = LandmarkNet(arch=options.arch, head=head, attention=False, width=how.width, dropout=how.dropout)
    layout = torch.contiguous_format if plain else torch.channels_last
    net = net.to(memory_format=layout)  # type: ignore[call-overload]
    bf16 = options.variant == "ours-bf16" or (not plain and "bf16" in resolve_precision(how.precision, "cpu"))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4, fused=None if plain else True)  # as training/fit.py does

    def step() -> None:
        images, points = next(source)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            predicted, _ = net(images.contiguous(memory_format=layout))
        loss = wing(predicted * 224, points * 224, omega=how.wing_omega, epsilon=how.wing_epsilon)
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
    parser.add_argument("--raw", help="raw folder; default: phantoms made for this run")
    parser.add_argument("--prepared", help=argparse.SUPPRESS)
    parser.add_argument("--part", choices=["input", "step"], help=argparse.SUPPRESS)
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--arch", default="unet", choices=["unet", "resnet18"])
    parser.add_argument("--size", type=int, default=64, help="pixels; 64 is the shipped scale, 128 the preset best")
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
        data.prepare(
            Path(options.raw),
            Path(options.prepared),
            load().landmarks.model_copy(update={"size": options.size, "split": "reference"}),
        )
        print(
            f"{options.arch}, {options.size} px, batch {options.batch}, {torch.get_num_threads()} threads, "
            f"automatic precision here: {resolve_precision('auto', 'cpu')}"
        )
        shared = {key: getattr(options, key) for key in ("raw", "prepared", "seconds", "arch", "size", "batch")}
        show("Input path alone", take_turns(__file__, INPUTS, shared | {"part": "input"}, rounds=options.rounds))
        steps = take_turns(__file__, STEPS, shared | {"part": "step"}, rounds=options.rounds)
        show("Whole training step", steps)
        speed = {name: row["images_per_s"] for name, row in steps.items()}
        print(
            f"share of precision, layout and optimiser: {speed['ours'] / speed['ours-float32-nchw']:.2f}x; of the input path: "
            f"{speed['ours-float32-nchw'] / speed['decode-2-workers-float32']:.2f}x of 2 workers, "
            f"{speed['ours-float32-nchw'] / speed['decode-0-workers-float32']:.2f}x of none"
        )


if __name__ == "__main__":
    main()

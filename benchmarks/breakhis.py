"""Data loading and throughput of the BreakHis study compared with decoding PNG files by PIL, side by side.

    python benchmarks/breakhis.py [--size 224] [--rounds 3] [--seconds 5] [--backbone b0]

Ours: batches from one uint8 array per magnification, as training reads them. Peer: the usual Dataset, which opens the four PNG
files of a quadruple with PIL, resizes them and, where augmentation is on, applies the same albumentations pipeline. A sample is a
quadruple of pictures of 700 x 460 pixels. The variants take turns, each in its own process (so that each has its own peak
memory), and medians over the rounds are compared. Then training steps and evaluation are timed with and without mixed precision.
Expected: about 6 minutes.
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
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from turns import take_turns

from quintet.breakhis.data.classes import MAGNIFICATIONS
from quintet.breakhis.data.prepare import prepare
from quintet.breakhis.data.prepared import Prepared, load
from quintet.breakhis.data.sampling import Batch, QuadrupleBatches
from quintet.breakhis.model.augmentation import Augmentation
from quintet.breakhis.model.losses import focal_loss
from quintet.breakhis.model.module import Quadruples
from quintet.breakhis.model.networks import MagnificationNet
from quintet.params import BreakHis
from quintet.params import load as load_params
from quintet.params.breakhis import BreakHisAugment
from quintet.training.fit import adam_optimizer
from quintet.training.hardware import peak_memory_mb, resolve_precision

INPUTS = ("cached", "decoding", "cached-augmented", "decoding-augmented", "augmentation-only")
NETWORK = ("train-float32", "train-bf16", "evaluate-float32", "evaluate-bf16")
SAMPLES = 3


def decode(raw: Path, files: list[list[str]], batch: Batch, size: int, augment: Augmentation | None) -> list[Tensor]:
    """A batch as a tutorial makes it: open, convert, resize and augment the pictures of each sample. `files`: those of each
    magnification, in the order of the prepared arrays."""
    quadruples, _, seeds = batch
    images: list[list[NDArray[np.uint8]]] = [[] for _ in MAGNIFICATIONS]
    for rows, seed in zip(quadruples, seeds, strict=True):
        if augment:
            augment.seed(int(seed))
        for m, (names, row) in enumerate(zip(files, rows, strict=True)):
            with Image.open(raw / names[row]) as picture:
                image = np.asarray(picture.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
            images[m].append(augment(image) if augment else image)
    return [torch.from_numpy(np.stack(stack)) for stack in images]


def endless_batches(data: Prepared, batch_size: int) -> Iterator[Batch]:
    patients = data.image_rows(sorted(set(data.table["patient"])), MAGNIFICATIONS)
    sampler = QuadrupleBatches(patients, SAMPLES, batch_size, seed=0)
    for epoch in range(10**6):
        sampler.set_epoch(epoch)
        yield from sampler


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Quadruples per second of one variant, and this process's peak memory."""
    advance = make_variant(options)
    for _ in range(2):
        advance()
    started, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < options.seconds:
        advance()
        count += options.batch
    return {"samples_per_s": count / elapsed, "peak_memory_mb": peak_memory_mb()}


def make_variant(options: argparse.Namespace) -> Callable[[], object]:
    """A function that makes or processes one batch."""
    params, data = load_params().breakhis, load(Path(options.prepared))
    names = sorted(set(data.table["patient"]))
    batches = endless_batches(data, options.batch)
    augment = params.training.augment if options.variant.endswith("augmented") else None
    if options.variant.startswith("cached"):
        cached = Quadruples(data, list(MAGNIFICATIONS), names, augment)
        return lambda: cached[next(batches)]
    if options.variant.startswith("decoding"):
        sorted_rows = data.table.sort_values("row")
        files = [sorted_rows["file"][sorted_rows["magnification"] == m].tolist() for m in MAGNIFICATIONS]
        augmentation = Augmentation(augment) if augment else None
        return lambda: decode(Path(options.raw), files, next(batches), options.size, augmentation)
    if options.variant == "augmentation-only":
        return augmentation_only(data, params.training.augment, options.batch)
    return network(options, Quadruples(data, list(MAGNIFICATIONS), names, None)[next(batches)], params)


def augmentation_only(data: Prepared, params: BreakHisAugment, batch_size: int) -> Callable[[], object]:
    augment, image = Augmentation(params), np.array(data.images["200X"][0])

    def advance() -> None:
        for seed in range(batch_size):
            augment.seed(seed)
            for _ in MAGNIFICATIONS:
                augment(image)

    return advance


def network(options: argparse.Namespace, batch: dict[str, Any], params: BreakHis) -> Callable[[], object]:
    """Forward pass, loss, backward pass and AdamW step of MMNet on one batch; or the forward pass alone."""
    torch.manual_seed(0)
    net = MagnificationNet(
        **params.configs["mmnet"].model_dump(),
        backbone=options.backbone,
        size=options.size,
        units=params.training.units,
        stochastic_depth=0.0,
        dropout=0.0,
    ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = adam_optimizer([{"params": list(net.parameters()), "lr": 1e-4}], params.training, decoupled=True)
    training = options.variant.startswith("train")
    net.train(training)
    weights = torch.ones(2)

    def advance() -> None:
        with torch.set_grad_enabled(training), torch.autocast("cpu", torch.bfloat16, enabled=options.variant.endswith("bf16")):
            output = net([net.normalise(images) for images in batch["images"]], batch["present"])
            loss = focal_loss(output.classes, batch["classes"], weights=weights, alpha=0.7, gamma=2.0)
        if training:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return advance


def show(title: str, results: dict[str, dict[str, float]]) -> None:
    print(f"\n{title}\n{'variant':24} {'samples/s':>10} {'peak MiB':>9}")
    for name, row in results.items():
        print(f"{name:24} {row['samples_per_s']:10.1f} {row['peak_memory_mb']:9.0f}")


def compare(options: argparse.Namespace) -> None:
    """Run all variants on the prepared data and print the comparisons."""
    print(
        f"quadruples of {options.size} pixels, batch {options.batch}, one process, {torch.get_num_threads()} threads, "
        f"automatic precision here: {resolve_precision('auto', 'cpu')}"
    )
    arguments = {key: getattr(options, key) for key in ("raw", "prepared", "seconds", "size", "batch", "backbone")}
    inputs = take_turns(__file__, INPUTS, arguments, rounds=options.rounds)
    show("Data loading", inputs)
    speed = {name: row["samples_per_s"] for name, row in inputs.items()}
    share = {kind: speed[f"{kind}-augmented"] / speed["augmentation-only"] for kind in ("cached", "decoding")}
    print(
        f"ours is {speed['cached'] / speed['decoding']:.1f}x as fast without augmentation and "
        f"{speed['cached-augmented'] / speed['decoding-augmented']:.2f}x with it; augmentation then takes "
        f"{100 * share['cached']:.0f} % of our time and {100 * share['decoding']:.0f} % of the peer's"
    )
    steps = take_turns(__file__, NETWORK, arguments, rounds=options.rounds)
    show(f"MMNet with {options.backbone}", steps)
    for kind in ("train", "evaluate"):
        ratio = steps[f"{kind}-bf16"]["samples_per_s"] / steps[f"{kind}-float32"]["samples_per_s"]
        print(f"{kind}: bfloat16 is {ratio:.2f}x as fast as float32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", help="a BreaKHis tree; default: phantoms of 700 x 460 pixels made for this run")
    parser.add_argument("--prepared", help=argparse.SUPPRESS)
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--size", type=int, default=224, help="pixels; 224 is the published size, 64 the default of params.yaml")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--backbone", default="b0", choices=["small", "b0", "b1"])
    options = parser.parse_args()
    if options.variant:
        print(json.dumps(measure(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        if options.raw is None:
            from quintet.breakhis.synthetic import synthesize

            options.raw = f"{folder}/raw"
            synthesize(Path(options.raw), patients=10, width=700, separation=1.5, seed=0, workers=-1)
        options.prepared = f"{folder}/prepared"
        params = load_params().breakhis
        data_params = params.data.model_copy(update={"size": options.size, "folds": 2})
        prepare(Path(options.raw), Path(options.prepared), params.model_copy(update={"data": data_params}))
        compare(options)


if __name__ == "__main__":
    main()

"""Input path and throughput of the BreakHis study against decoding PNG with PIL, side by side in one run.

    python benchmarks/breakhis.py [--size 224] [--rounds 3] [--seconds 5] [--backbone b0]

Ours: batches from one uint8 array per magnification, as training reads them. Peer: the usual Dataset, which opens the four PNG
files of a quadruple with PIL, resizes them, and (where asked) augments them with the same albumentations pipeline. A sample is a
quadruple of 700 x 460 pictures. Every variant runs in a process of its own (so that peak memory is its own), the variants take
turns, medians over the rounds are compared. Then training steps and evaluation, with and without mixed precision. Expected: about
6 minutes.
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

from quintet.breakhis.data import prepared as data
from quintet.breakhis.data.sampling import Item, QuadrupleBatches
from quintet.breakhis.data.tree import MAGNIFICATIONS
from quintet.breakhis.model.augmentation import Augmentation
from quintet.breakhis.model.losses import focal_loss
from quintet.breakhis.model.module import Quadruples
from quintet.breakhis.model.networks import MagnificationNet, normalise
from quintet.params import BreakHis, load
from quintet.training.fit import adam_optimizer
from quintet.training.hardware import peak_memory_mb, resolve_precision

INPUTS = ("cached", "decoding", "cached-augmented", "decoding-augmented", "augmentation-alone")
NETWORK = ("train-float32", "train-bf16", "evaluate-float32", "evaluate-bf16")


def decoded(prepared: data.Prepared, raw: Path, item: Item, size: int, augment: Augmentation | None) -> list[Tensor]:
    """A batch as a tutorial makes it: open, convert, resize, augment, four pictures a sample."""
    quadruples, _, seeds = item
    images: list[list[NDArray[np.uint8]]] = [[] for _ in MAGNIFICATIONS]
    for rows, seed in zip(quadruples, seeds, strict=True):
        if augment:
            augment.seed(int(seed))
        for m, (files, row) in enumerate(zip(FILES, rows, strict=True)):
            with Image.open(raw / files[row]) as picture:
                image = np.asarray(picture.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
            images[m].append(augment(image) if augment else image)
    return [torch.from_numpy(np.stack(own)) for own in images]


FILES: list[list[str]] = []


def items(prepared: data.Prepared, batch: int) -> Iterator[Item]:
    sampler = QuadrupleBatches(prepared.rows(sorted(set(prepared.index["patient"])), MAGNIFICATIONS), 3, batch, seed=0)
    for epoch in range(10**6):
        sampler.set_epoch(epoch)
        yield from sampler


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Quadruples a second of one variant, and this process's peak memory."""
    how = load().breakhis
    prepared = data.load(Path(options.prepared))
    names = sorted(set(prepared.index["patient"]))
    for m in MAGNIFICATIONS:
        own = prepared.index[prepared.index["magnification"] == m].sort_values("row")
        FILES.append(own["file"].tolist())
    source = items(prepared, options.batch)
    augmented = options.variant.endswith("augmented")
    advance: Callable[[], object]
    if options.variant.startswith("cached"):
        cached = Quadruples(prepared, list(MAGNIFICATIONS), names, how.augment if augmented else None)
        advance = lambda: cached[next(source)]  # noqa: E731
    elif options.variant.startswith("decoding"):
        change = Augmentation(how.augment) if augmented else None
        advance = lambda: decoded(prepared, Path(options.raw), next(source), options.size, change)  # noqa: E731
    elif options.variant == "augmentation-alone":
        advance = augmentation_alone(prepared, how, options)
    else:
        advance = network(options, Quadruples(prepared, list(MAGNIFICATIONS), names, None)[next(source)], how)
    for _ in range(2):
        advance()
    started, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - started) < options.seconds:
        advance()
        count += options.batch
    return {"samples_per_s": count / passed, "peak_memory_mb": peak_memory_mb()}


def augmentation_alone(prepared: data.Prepared, how: BreakHis, options: argparse.Namespace) -> Callable[[], object]:
    change, image = Augmentation(how.augment), np.array(prepared.images["200X"][0])

    def advance() -> None:
        for seed in range(options.batch):
            change.seed(seed)
            for _ in MAGNIFICATIONS:
                change(image)

    return advance


def network(options: argparse.Namespace, batch: dict[str, Any], how: BreakHis) -> Callable[[], object]:
    """Forward, loss, backward, AdamW of MMNet on one batch; or the forward pass alone."""
    torch.manual_seed(0)
    net = MagnificationNet(
        **how.configs["mmnet"].model_dump(),
        backbone=options.backbone,
        size=options.size,
        units=how.units,
        stochastic_depth=0.0,
        dropout=0.0,
    ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = adam_optimizer([{"params": list(net.parameters()), "lr": 1e-4}], how, decoupled=True)
    training = options.variant.startswith("train")
    net.train(training)
    weights = torch.ones(2)

    def advance() -> None:
        with torch.set_grad_enabled(training), torch.autocast("cpu", torch.bfloat16, enabled=options.variant.endswith("bf16")):
            scores = net([normalise(images) for images in batch["images"]], batch["present"])
            loss = focal_loss(scores.classes, batch["classes"], weights=weights, alpha=0.7, gamma=2.0)
        if training:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return advance


def show(title: str, results: dict[str, dict[str, float]]) -> None:
    print(f"\n{title}\n{'variant':24} {'samples/s':>10} {'peak MiB':>9}")
    for name, row in results.items():
        print(f"{name:24} {row['samples_per_s']:10.1f} {row['peak_memory_mb']:9.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", help="a BreaKHis tree; default: phantoms of 700 x 460 pixels made for this run")
    parser.add_argument("--prepared", help=argparse.SUPPRESS)
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--size", type=int, default=224, help="pixels; 224 is the published size, 64 the shipped scale")
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
            synthesize(Path(options.raw), patients=10, width=700, seed=0, workers=-1)
        options.prepared = f"{folder}/prepared"
        how = load().breakhis.model_copy(update={"size": options.size, "folds": 2})
        data.prepare(Path(options.raw), Path(options.prepared), how)
        print(
            f"quadruples of {options.size} px, batch {options.batch}, one process, {torch.get_num_threads()} threads, "
            f"automatic precision here: {resolve_precision('auto', 'cpu')}"
        )
        shared = {key: getattr(options, key) for key in ("raw", "prepared", "seconds", "size", "batch", "backbone")}
        inputs = take_turns(__file__, INPUTS, shared, rounds=options.rounds)
        show("Input path", inputs)
        speed = {name: row["samples_per_s"] for name, row in inputs.items()}
        share = {kind: speed[f"{kind}-augmented"] / speed["augmentation-alone"] for kind in ("cached", "decoding")}
        print(
            f"without augmentation ours is {speed['cached'] / speed['decoding']:.1f}x, with the same one "
            f"{speed['cached-augmented'] / speed['decoding-augmented']:.2f}x; augmentation is {100 * share['cached']:.0f} % of "
            f"our time then and {100 * share['decoding']:.0f} % of the peer's"
        )
        found = take_turns(__file__, NETWORK, shared, rounds=options.rounds)
        show(f"MMNet with {options.backbone}", found)
        for kind in ("train", "evaluate"):
            ratio = found[f"{kind}-bf16"]["samples_per_s"] / found[f"{kind}-float32"]["samples_per_s"]
            print(f"{kind}: bfloat16 is {ratio:.2f}x of float32")


if __name__ == "__main__":
    main()

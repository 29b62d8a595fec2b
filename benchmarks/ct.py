"""The CT study compared with its peers, side by side in one run.

    pip install -c constraints.txt torchio SimpleITK
    python benchmarks/ct.py [--part dicom|metrics|input|memory|growth] [--rounds 3]

dicom: convert one series of 300 slices of 512 x 512 to 270^3 uint8 with our code, a MONAI pipeline (pydicom reader) and a
SimpleITK one; reports the mean absolute difference from our result in grey levels, and the peak memory above that after the
imports, in multiples of the int16 volume. metrics: all retrieval metrics of 2,156 queries x 2,156 scans, compared with a loop
over queries. input: stored voxels per second through the training input path (read, rotate and scale, resize, add noise),
compared with torchio transforms on each sample. memory: one training step of both networks at full scale, batch size 1. growth:
preparation and index of up to 2,156 small scans. Each
variant runs in its own process; the variants alternate, and medians over the rounds are compared. Expected: about 8 minutes.
"""

import argparse
import importlib
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from scipy.ndimage import zoom
from turns import take_turns

from quintet.params import load
from quintet.training.hardware import peak_memory_mb

SLICES, MATRIX, SIZE, WINDOW = 300, 512, 270, (-1000.0, 400.0)
SPACING_MM = (1.0, 0.7, 0.7)
QUERIES = 2156
STORED, INPUT = 96, (24, 72, 72)  # the default scale; --full: 270 and 270 x 150 x 150
RAW_MIB = SLICES * MATRIX**2 * 2 / 2**20
PARTS = {
    "dicom": ("ours", "monai", "simpleitk"),
    "metrics": ("ours", "loop"),
    "input": ("ours", "torchio"),
    "memory": ("adaptive", "legacy"),
    "growth": ("270", "540", "1078", "2156"),
}


def write_phantom(folder: Path) -> None:
    """A series with structure at all scales and noise, larger than any phantom of the study."""
    from quintet.ct.synthetic import write_series

    rng = np.random.default_rng(0)
    coarse = zoom(rng.normal(size=(30, 52, 52)), 10, order=1)[:SLICES, :MATRIX, :MATRIX]
    hu = (coarse * 400 - 300 + rng.normal(size=coarse.shape) * 30).clip(-1024, 3071).astype(np.int16)
    write_series(folder, hu, SPACING_MM)


def dicom_ours(series: Path) -> NDArray[np.uint8]:
    from quintet.imaging.cubes import to_cube
    from quintet.imaging.dicom import read_series

    return to_cube(read_series(series), SIZE, WINDOW, threads=torch.get_num_threads())


def dicom_simpleitk(series: Path) -> NDArray[np.uint8]:
    import SimpleITK

    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(series)))
    image = reader.Execute()
    spacing = max(n * mm for n, mm in zip(image.GetSize(), image.GetSpacing(), strict=True)) / SIZE
    middle = np.array(image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()]))
    resample = SimpleITK.ResampleImageFilter()
    resample.SetSize([SIZE] * 3)
    resample.SetOutputSpacing([spacing] * 3)
    resample.SetOutputOrigin([float(v) for v in middle - (SIZE - 1) / 2 * spacing])
    resample.SetInterpolator(SimpleITK.sitkLinear)
    resample.SetDefaultPixelValue(WINDOW[0])
    resample.SetOutputPixelType(SimpleITK.sitkFloat32)
    grey = SimpleITK.IntensityWindowing(resample.Execute(image), *WINDOW, 0, 255)
    return np.asarray(SimpleITK.GetArrayFromImage(SimpleITK.Cast(grey + 0.5, SimpleITK.sitkUInt8))[:, ::-1, ::-1])  # LPS -> RAS


def dicom_monai(series: Path) -> NDArray[np.uint8]:
    from monai.transforms import Compose, EnsureChannelFirst, LoadImage, ScaleIntensityRange, SpatialResample

    image = Compose([LoadImage(reader="PydicomReader"), EnsureChannelFirst()])(str(series))
    affine = np.asarray(image.affine)
    lengths, shape = np.linalg.norm(affine[:3, :3], axis=0), np.array(image.shape[1:])
    spacing = float((lengths * shape).max()) / SIZE
    middle = affine[:3, :3] @ ((shape - 1) / 2) + affine[:3, 3]
    target = np.diag([spacing] * 3 + [1.0])
    target[:3, 3] = middle - (SIZE - 1) / 2 * spacing
    resample: Any = SpatialResample(mode="bilinear", padding_mode="zeros", dtype=np.float32)
    shifted = resample(image - WINDOW[0], dst_affine=target, spatial_size=(SIZE,) * 3)  # zeros are the window's lower end
    grey: Any = ScaleIntensityRange(0, WINDOW[1] - WINDOW[0], 0, 255, clip=True)(shifted)
    return np.asarray((grey + 0.5).to(torch.uint8))[0].transpose(2, 1, 0)


def dicom(variant: str, options: argparse.Namespace) -> dict[str, float]:
    read = {"ours": dicom_ours, "monai": dicom_monai, "simpleitk": dicom_simpleitk}[variant]
    ours = ["quintet.imaging.cubes", "quintet.imaging.dicom"]
    for name in {"ours": ours, "monai": ["monai.transforms"], "simpleitk": ["SimpleITK"]}[variant]:
        importlib.import_module(name)  # its time and memory do not count
    before = psutil.Process().memory_info().rss / 2**20
    started = time.perf_counter()
    cube = read(Path(options.folder) / "series")
    seconds = time.perf_counter() - started
    memory = peak_memory_mb() - before
    target = Path(options.folder) / "ours.npy"
    if variant == "ours":
        np.save(target, cube)
    difference = float(np.abs(cube.astype(int) - np.load(target)).mean())
    return {"seconds": seconds, "memory_volumes": memory / RAW_MIB, "grey_levels_from_ours": difference}


def scans() -> tuple[Any, NDArray[np.float32]]:
    from quintet.ct.metrics import Scans

    rng = np.random.default_rng(0)
    labels = (rng.random((QUERIES, 3)) < 0.35).astype(np.float32)
    names = np.array([f"s{i}" for i in range(QUERIES)])
    patients = np.array([f"p{i // 2}" for i in range(QUERIES)])
    vectors = rng.normal(size=(QUERIES, 1024)).astype(np.float32) + labels.repeat(342, 1)[:, :1024]
    return Scans(names, patients, labels, ["a", "b", "c"]), vectors


def loop_over_queries(similarity: NDArray[np.float64], known: Any, ks: tuple[int, ...]) -> dict[str, NDArray[np.float64]]:
    """One query after the other with NumPy, as evaluation scripts do (ties keep the order of the sort)."""
    rows = []
    sets = [frozenset(np.flatnonzero(row)) for row in known.labels]
    jaccard = {(a, b): len(a & b) / len(a | b) if a | b else 1.0 for a in set(sets) for b in set(sets)}
    for q in range(len(sets)):
        gallery = np.flatnonzero(known.patients != known.patients[q])
        gains = np.array([jaccard[sets[q], sets[g]] for g in gallery])
        order = gains[np.argsort(-similarity[q, gallery], kind="stable")]
        relevant = order > 0
        ideal = np.sort(gains)[::-1]
        discount = 1 / np.log2(np.arange(2, len(order) + 2))
        precision = relevant.cumsum() / np.arange(1, len(order) + 1)
        row = {}
        for k in ks:
            row[f"precision_at_{k}"] = relevant[:k].sum() / k
            row[f"recall_at_{k}"] = relevant[:k].sum() / relevant.sum()
            row[f"ap_at_{k}"] = (precision * relevant)[:k].sum() / min(k, relevant.sum())
            row[f"ndcg_at_{k}"] = (order * discount)[:k].sum() / (ideal * discount)[:k].sum()
            row[f"jaccard_at_{k}"] = order[:k].sum() / k
        rows.append(row)
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def metrics(variant: str, options: argparse.Namespace) -> dict[str, float]:
    from quintet.ct.metrics import KS, cosine, retrieve

    known, vectors = scans()
    similarity = cosine(vectors)
    for _ in range(2 if variant == "ours" else 0):  # warm-up
        retrieve(similarity, known)
    started = time.perf_counter()
    found = retrieve(similarity, known).metrics if variant == "ours" else loop_over_queries(similarity, known, KS)
    seconds = time.perf_counter() - started
    target = Path(options.folder) / "metrics.npz"
    if variant == "ours":
        np.savez(target, **dict(found))  # type: ignore[arg-type]
        return {"seconds": seconds, "largest_difference": 0.0}
    with np.load(target) as ours:
        return {"seconds": seconds, "largest_difference": float(max(np.abs(ours[name] - found[name]).max() for name in found))}


def input_path(variant: str, options: argparse.Namespace) -> dict[str, float]:
    params = load().ct.training.augment
    stored, size = (270, (270, 150, 150)) if options.full else (STORED, INPUT)
    batch = 2 if options.full else 8
    volumes = np.load(Path(options.folder) / f"volumes-{stored}.npy", mmap_mode="r")
    rng = np.random.default_rng(0)
    if variant == "ours":
        from quintet.ct.model.augmentation import Augmentation

        augment = Augmentation(params)

        def next_batch() -> object:
            rows = rng.integers(len(volumes), size=batch)
            return augment(torch.from_numpy(np.stack([volumes[row] for row in rows])), size)
    else:
        import torchio as tio

        transform = tio.Compose(
            [
                tio.RandomAffine(scales=params.scale, degrees=params.rotation_deg, default_pad_value=0, p=params.affine),
                tio.Resize(size),
                tio.RandomNoise(std=params.noise_sd, p=params.noise),
            ]
        )

        def next_batch() -> object:
            rows = rng.integers(len(volumes), size=batch)
            return torch.stack([transform(torch.from_numpy(np.array(volumes[row])[None]).float() / 255) for row in rows])

    for _ in range(2):
        next_batch()
    started, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - started) < options.seconds:
        next_batch()
        count += batch
    return {"million_voxels_per_s": count * stored**3 / passed / 1e6, "peak_memory_mb": peak_memory_mb()}


def memory(variant: str, options: argparse.Namespace) -> dict[str, float]:
    """Resize, forward, loss, backward and Adam at batch 1, with the sizes of the preset `paper`."""
    from quintet.ct.model.losses import micro_f1_loss
    from quintet.ct.model.networks import Proximity, network_input

    torch.manual_seed(0)
    net = Proximity(
        arch=variant,
        input_size=[270, 150, 150],
        findings=3,
        width=64,
        units=[4096, 2048],
        embedding=1024,
        dropout=0.5,
        chunk=10 if variant == "adaptive" else 3,
        centre=False,
    ).train()
    net.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-5, weight_decay=1e-4, fused=True)
    cube = torch.randint(0, 256, (1, 270, 270, 270), dtype=torch.uint8)
    started = time.perf_counter()
    loss = micro_f1_loss(net(network_input(cube, net.input_size)).logits, torch.tensor([[1.0, 0, 1]]))
    loss.backward()
    optimizer.step()
    return {
        "seconds": time.perf_counter() - started,
        "peak_memory_gib": peak_memory_mb() / 1024,
        "million_parameters": sum(p.numel() for p in net.parameters()) / 1e6,
    }


def growth(variant: str, options: argparse.Namespace) -> dict[str, float]:
    """Preparation of so many small scans, and an index of them by the selected run, where there is one; one core."""
    from quintet.ct.data.prepare import prepare
    from quintet.ct.search import build
    from quintet.ct.synthetic import synthesize

    ct = load(Path("params.yaml")).ct
    synthetic = ct.synthetic.model_copy(update={"scans": int(variant), "matrix": 32})
    small = ct.model_copy(update={"synthetic": synthetic, "data": ct.data.model_copy(update={"size": 24})})
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        raw, run = Path(folder) / "raw", Path("runs/ct/selected")
        synthesize(raw, synthetic, workers=1)
        before, started = peak_memory_mb(), time.perf_counter()
        prepare(raw, Path(folder) / "prepared", small)
        found["prepare_ms_a_scan"] = 1000 * (time.perf_counter() - started) / int(variant)
        found["prepare_more_mib"] = peak_memory_mb() - before
        if (run / "model").is_dir():
            before, started = peak_memory_mb(), time.perf_counter()
            build([run], raw, Path(folder) / "index", kind="exact", device="cpu", skip=False)
            found["index_ms_a_scan"] = 1000 * (time.perf_counter() - started) / int(variant)
            found["index_more_mib"] = peak_memory_mb() - before
    return found


MEASURES = {"growth": growth, "dicom": dicom, "metrics": metrics, "input": input_path, "memory": memory}


def show(part: str, found: dict[str, dict[str, float]]) -> None:
    names = list(next(iter(found.values())))
    print(f"\n{part}\n{'variant':12} " + " ".join(f"{name:>22}" for name in names))
    for variant, row in found.items():
        print(f"{variant:12} " + " ".join(f"{row[name]:22.4g}" for name in names), end="")
        speed = names[0]
        if "ours" in found and variant != "ours":
            ratio = row[speed] / found["ours"][speed]
            print(f"   ours is {ratio if speed == 'seconds' else 1 / ratio:.2f}x", end="")
        print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=list(PARTS))
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--full", type=int, default=0, help="1: the input path at 270^3 stored, 270 x 150 x 150 as input")
    options = parser.parse_args()
    if options.variant:
        print(json.dumps(MEASURES[options.part](options.variant, options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        parts = [options.part] if options.part else list(PARTS)
        if "dicom" in parts:
            write_phantom(Path(folder) / "series")
        if "input" in parts:
            stored, count = (270, 6) if options.full else (STORED, 64)
            np.save(
                Path(folder) / f"volumes-{stored}.npy",
                np.random.default_rng(0).integers(0, 256, (count, stored, stored, stored), dtype=np.uint8),
            )
        print(f"{torch.get_num_threads()} threads")
        for part in parts:
            rounds = 1 if part in ("memory", "growth") else options.rounds
            shared = {"part": part, "folder": folder, "seconds": options.seconds, "full": options.full}
            show(part, take_turns(__file__, PARTS[part], shared, rounds=rounds))


if __name__ == "__main__":
    main()

"""Perfusion phantoms in nnU-Net's raw layout: two maps of cerebral blood flow per visit, one per internal carotid artery.

A person (anatomy.py) is the same at every visit; a visit places the head in a scanner grid and adds labelling, motion, noise and
an annotator. A map shows its own artery, labelled incompletely, and some of the other arteries' flow:

    map = gain(x) [efficiency own(x) + leak(x) other(x) + leak'(x) posterior(x)] + noise

so that neither the share of the two maps nor their sum is the supply. Files beside nnU-Net's: truth/CASE.nii.gz, the territories
before the annotator drew them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scipy.ndimage import binary_closing, binary_opening, distance_transform_edt, gaussian_filter

from quintet.files import atomic_folder, write_json
from quintet.imaging.volumes import Grid, write_nifti
from quintet.perfusion.anatomy import Floats, Person, Waves

SLICES, MATRIX = 14, (80, 64)  # slices, rows, columns; the brain fills about 71 x 55
SPACING_MM = (6.6, 2.625, 2.625)
MAX_VISITS = 2
STEP = 2**-6  # of the stored maps, ml/100 g/min: coarser than the last digits, which differ between processors
MIN_SUPPLY = 0.3  # of a voxel's flow: an artery that supplies as much has it in its territory, so territories overlap

ASSUMED_EFFICIENCY = 0.85  # of labelling, in the quantification of flow (Alsop et al. 2015, doi:10.1002/mrm.25197)
EFFICIENCY = (0.86, 0.06)  # mean and SD of pseudo-continuous labelling (Aslan et al. 2010, doi:10.1002/mrm.22245)
SELECTIVE = (0.5, 1.0)  # of it: a labelling spot that misses the middle of its vessel (Helle et al. 2010, doi:10.1002/mrm.22451)
LEAK = (0.05, 0.25)  # of the flow of an artery that should not be labelled; per visit, smooth over the brain
LEAK_SD = 0.05  # over the brain
GAIN_SD = 0.1  # of log gain, over visits and over the brain: calibration and coil sensitivity
MOTION_MM, MOTION_DEG = 1.5, 1.5  # SD per axis, between the two maps, which are acquired one after the other
SLICE_MOTION_MM = 0.7  # SD per axis, between slices of a map
NOISE = (7.0, 10.0)  # SD per channel, ml/100 g/min: the two arteries are labelled in different positions
ANNOTATOR_MM = 2.6  # SD of a drawn border about the true one: a pixel
ANNOTATOR_WAVES_MM = (20.0, 60.0)  # length of its waves within a slice
MARGIN_MM = 8.0  # about the brain, in which fields are computed: what motion, blur and the annotator can move into it


@dataclass(frozen=True)
class Labelling:
    """What one map shows of the three arteries' flow, at one visit."""

    efficiency: float
    leaks: tuple[float, float]  # of the other carotid and of the posterior arteries
    gain: float
    fields: tuple[Waves, Waves, Waves]  # over the brain: of both leaks and of the gain

    @staticmethod
    def draw(rng: np.random.Generator) -> "Labelling":
        return Labelling(
            efficiency=float(np.clip(rng.normal(*EFFICIENCY), 0, 1)) * rng.uniform(*SELECTIVE),
            leaks=(rng.uniform(*LEAK), rng.uniform(*LEAK)),
            gain=rng.normal(0, GAIN_SD),
            fields=(Waves.draw(rng, 4, (80, 200)), Waves.draw(rng, 4, (80, 200)), Waves.draw(rng, 4, (150, 300))),
        )

    def __call__(self, flow: Floats, side: int, at: Floats) -> Floats:
        """The arteries' flow `[..., 3]` at head coordinates `[..., 3]` -> the map of a side, `[...]` ml/100 g/min."""
        other, posterior = (np.clip(leak + LEAK_SD * f(at), *LEAK) for leak, f in zip(self.leaks, self.fields[:2], strict=True))
        labelled = self.efficiency * flow[..., side] + other * flow[..., 1 - side] + posterior * flow[..., 2]
        shown: Floats = labelled * np.exp(self.gain + GAIN_SD * self.fields[2](at)) / ASSUMED_EFFICIENCY
        return shown


@dataclass(frozen=True)
class Visit:
    maps: Floats  # [2, X, Y, Z], 0 outside the brain
    label: NDArray[np.uint8]  # 1 left, 2 right, 3 both
    truth: NDArray[np.uint8]  # likewise, without the annotator


def visit(person: Person, grid: Grid, rng: np.random.Generator) -> Visit:
    indices = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), -1)
    at = _moved(indices @ grid.affine[:3, :3].T + grid.affine[:3, 3], rng, degrees=2, mm=1.5)  # never placed exactly alike
    depth, spacing = person.depth(at), np.linalg.norm(grid.affine[:3, :3], axis=0)
    brain, near = depth > 0, depth > -MARGIN_MM
    maps = []
    for side in range(2):
        seen = _moved(at, rng, degrees=MOTION_DEG, mm=MOTION_MM) + rng.normal(0, SLICE_MOTION_MM, (grid.shape[2], 3))
        shown = np.zeros(grid.shape)
        shown[near] = Labelling.draw(rng)(person.labelled_flow(seen[near]), side, seen[near])
        noise = gaussian_filter(rng.normal(size=grid.shape), (0.5, 0.5, 0))
        noise *= NOISE[side] * rng.uniform(0.85, 1.2) / noise.std()
        maps.append((gaussian_filter(shown, 0.6 * SPACING_MM[1] / spacing * [1, 1, 0]) + noise) * brain)
    supply = np.zeros((*grid.shape, 3))
    supply[near] = person.supply(at[near])
    supplied = [_without_specks(supply[..., side] >= MIN_SUPPLY) for side in range(2)]
    drawn = [as_drawn(mask, at, spacing, rng) for mask in supplied]
    return Visit(np.stack(maps), _as_label(drawn, brain), _as_label(supplied, brain))


def _moved(at: Floats, rng: np.random.Generator, *, degrees: float, mm: float) -> Floats:
    moved: Floats = at @ _rotation(np.radians(rng.normal(0, degrees, 3))).T + rng.normal(0, mm, 3)
    return moved


def _without_specks(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Slice by slice."""
    stencil = np.ones((3, 3, 1), bool)
    return binary_closing(binary_opening(mask, stencil), stencil) & mask


def as_drawn(mask: NDArray[np.bool_], at: Floats, spacing_mm: Floats, rng: np.random.Generator) -> NDArray[np.bool_]:
    """The mask as an annotator draws it, slice by slice: its border is displaced by a smooth random distance."""
    far = [*spacing_mm[:2], 1e6]  # distances within a slice
    distance = distance_transform_edt(mask, sampling=far) - distance_transform_edt(~mask, sampling=far)
    distance -= np.sign(distance) * spacing_mm[:2].mean() / 2  # the border is between two pixels
    # shorter waves across slices: they are drawn one by one
    waves = ANNOTATOR_MM * Waves.draw(rng, 16, ANNOTATOR_WAVES_MM)(at * [1, 1, 3])
    drawn: NDArray[np.bool_] = distance + waves > 0
    return drawn


def _as_label(masks: list[NDArray[np.bool_]], brain: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return ((masks[0] + 2 * masks[1]) * brain).astype(np.uint8)


def scanner_grid(rng: np.random.Generator, spacing_mm: Floats, number: int) -> Grid:
    """A grid `[X, Y, Z]` around the head: every third is oblique, every fourth is stored right to left or back to front."""
    shape = np.array([MATRIX[1], MATRIX[0], SLICES])
    angles = np.radians(rng.normal(0, 7, 3)) if number % 3 == 0 else np.zeros(3)
    rotation = _rotation(angles)
    steps = rotation @ np.diag(spacing_mm[::-1])
    centre = np.array([0, -2, 8]) + rng.normal(0, 2, 3)
    affine = np.eye(4)
    affine[:3, :3] = steps
    affine[:3, 3] = centre - steps @ ((shape - 1) / 2)
    if number % 4 == 1:  # the same voxels with reversed indices
        axis = int(number // 4 % 2)
        flip = np.eye(4)
        flip[axis, axis], flip[axis, 3] = -1, shape[axis] - 1
        affine = affine @ flip
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)


def _rotation(radians: Floats) -> Floats:
    (cx, cy, cz), (sx, sy, sz) = np.cos(radians), np.sin(radians)
    around = [
        [[1, 0, 0], [0, cx, -sx], [0, sx, cx]],
        [[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]],
        [[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]],
    ]
    return np.array(around[0]) @ np.array(around[1]) @ np.array(around[2])


def synthesize(out: Path, *, subjects: int, seed: int, workers: int = 1) -> None:
    """Write `subjects` people with 1 or 2 visits each to `out`, atomically. A person depends only on the seed and the person's
    number."""
    with atomic_folder(out) as folder:
        for part in ("imagesTr", "labelsTr", "truth"):
            (folder / part).mkdir()
        visits = Parallel(n_jobs=workers)(delayed(_write_person)(folder, number, seed) for number in range(1, subjects + 1))
        write_json(folder / "dataset.json", description(sum(visits)))


def _write_person(folder: Path, number: int, seed: int) -> int:
    rng = np.random.default_rng([seed, number])
    person = Person.draw(rng)
    spacing = np.array(SPACING_MM) * np.array([1, *[rng.choice([1, 1, 0.93, 1.08])] * 2])
    visits = int(rng.integers(1, MAX_VISITS + 1))
    for index in range(1, visits + 1):
        grid = scanner_grid(rng, spacing, number)
        seen = visit(person, grid, rng)
        name = f"PerfTerr{number:03d}-v{index}"
        for channel, array in enumerate(seen.maps):
            stored = np.round(array / STEP) * STEP
            write_nifti(folder / "imagesTr" / f"{name}_{channel:04d}.nii.gz", stored.astype(np.float32), grid)
        for part, masks in (("labelsTr", seen.label), ("truth", seen.truth)):
            write_nifti(folder / part / f"{name}.nii.gz", masks, grid)
    return visits


def description(cases: int) -> dict[str, Any]:
    return {
        "channel_names": {"0": "LICA CBF", "1": "RICA CBF"},
        "labels": {"background": 0, "left": [1, 3], "right": [2, 3]},
        "regions_class_order": [1, 2],
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }

"""Perfusion phantoms in nnU-Net's raw layout: two maps of cerebral blood flow per visit, one per internal carotid artery.

A person is a set of smooth fields in head coordinates (mm: x to the right, y to the front, z up): brain, tissue, and the
share of the flow that each artery supplies. A visit places the head in a scanner grid and adds its own physiology, noise
and label. Flow: grey matter about 65, white 22 ml/100 g/min (Parkes et al. 2004, doi:10.1002/mrm.20023). A voxel belongs to
an artery that supplies at least `MIN_SUPPLY` of it, so that territories overlap where both do.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scipy.ndimage import binary_closing, binary_opening, gaussian_filter

from quintet.files import atomic_folder, write_json
from quintet.imaging.volumes import Grid, write_nifti

Floats = NDArray[np.float64]
SLICES, MATRIX = 14, (80, 64)  # slices, rows, columns; the brain fills about 71 x 55
SPACING_MM = (6.6, 2.625, 2.625)
GREY, WHITE, FLUID = 65.0, 22.0, 4.0  # ml/100 g/min
MIN_SUPPLY = 0.3
LEAK = 0.04  # of the other artery's flow, from imperfect labelling
NOISE = (7.0, 10.0)  # SD per channel, ml/100 g/min: the two arteries are labelled in different positions


@dataclass(frozen=True)
class Waves:
    """A smooth random field: a sum of plane waves, defined everywhere, so that all visits sample the same one."""

    direction: Floats  # [K, 3], radians per mm
    phase: Floats  # [K]

    @staticmethod
    def draw(rng: np.random.Generator, count: int, wavelength_mm: tuple[float, float]) -> "Waves":
        direction = rng.normal(size=(count, 3))
        direction *= (2 * np.pi / rng.uniform(*wavelength_mm, count) / np.linalg.norm(direction, axis=1))[:, None]
        return Waves(direction, rng.uniform(0, 2 * np.pi, count))

    def __call__(self, at: Floats) -> Floats:
        """`[..., 3]` mm -> `[...]`, SD about 1."""
        turns = at.astype(np.float32) @ self.direction.T.astype(np.float32) + self.phase.astype(np.float32)
        values: Floats = np.cos(turns).sum(-1) * np.sqrt(2 / len(self.phase))
        return values


@dataclass(frozen=True)
class Person:
    half_axes_mm: Floats  # [3]
    folds: Waves
    cortex_mm: float
    midline_mm: float  # where the anterior territories meet
    bend: Waves
    width_mm: float  # over which the supply changes from one side to the other
    posterior_mm: Floats  # [2] left, right: tissue behind it has a posterior supply
    occluded: int | None  # 0 left, 1 right: the other side supplies its front
    flow: float

    @staticmethod
    def draw(rng: np.random.Generator) -> "Person":
        fetal = rng.random(2) < 0.15  # a posterior cerebral artery that comes from the carotid
        return Person(
            half_axes_mm=np.array([70.0, 91.0, 66.0]) * rng.normal(1, 0.035, 3),
            folds=Waves.draw(rng, 24, (14, 30)),
            cortex_mm=rng.uniform(8, 11),
            midline_mm=rng.normal(0, 4),
            bend=Waves.draw(rng, 6, (60, 160)),
            width_mm=rng.uniform(3, 10),
            posterior_mm=np.where(fetal, rng.normal(-72, 6, 2), rng.normal(-38, 9, 2)),
            occluded=int(rng.integers(2)) if rng.random() < 0.15 else None,
            flow=float(rng.normal(1, 0.12)),
        )

    def inside(self, at: Floats) -> NDArray[np.bool_]:
        return self.depth(at) > 0

    def depth(self, at: Floats) -> Floats:
        """Roughly mm below the surface; negative outside. The base is flatter than the vault."""
        scaled = at / self.half_axes_mm
        scaled = np.where((np.arange(3) == 2) & (at[..., 2:] < 0), scaled * 1.35, scaled)
        radius = np.linalg.norm(scaled, axis=-1)
        fissure = 3.5 * np.exp(-np.abs(at[..., 0]) / 2.5) * (np.linalg.norm(at[..., 1:] / self.half_axes_mm[1:], axis=-1) > 0.75)
        depth: Floats = (1 - radius) * float(self.half_axes_mm.mean()) - fissure
        return depth

    def tissue_flow(self, at: Floats) -> Floats:
        """ml/100 g/min of all arteries together."""
        folded = self.depth(at) + 4.5 * self.folds(at)
        grey = 1 / (1 + np.exp((folded - self.cortex_mm) / 1.2))
        x, y, z = np.abs(at[..., 0]), at[..., 1], at[..., 2]
        nuclei = ((x - 20) / 12) ** 2 + ((y + 2) / 26) ** 2 + ((z - 5) / 12) ** 2 < 1
        ventricle = ((x - 9) / 6) ** 2 + ((y - 2) / 34) ** 2 + ((z - 18) / 9) ** 2 < 1
        flow = WHITE + (GREY - WHITE) * np.where(nuclei, 0.9, grey)
        return np.where(ventricle, FLUID, flow) * self.flow

    def supply(self, at: Floats) -> Floats:
        """`[..., 2]`: the share of the flow that comes from the left and from the right carotid; the rest is posterior."""
        x, y, z = np.moveaxis(at, -1, 0)
        border = self.midline_mm + 3.5 * self.bend(at)
        if self.occluded is not None:
            front = 1 / (1 + np.exp(-(y - 5) / 8))
            border = border + (-26 if self.occluded == 0 else 26) * front
        right = 1 / (1 + np.exp(-(x - border) / self.width_mm))
        behind = np.where(x < 0, *self.posterior_mm) + 0.35 * np.maximum(0, z - 10) * -1 + 5 * self.bend(at[..., [1, 2, 0]])
        below = -22 - 0.25 * (y + 40)  # cerebellum and brain stem
        posterior = np.maximum(1 / (1 + np.exp((y - behind) / 4)), 1 / (1 + np.exp((z - below) / 3)))
        supply: Floats = np.stack([1 - right, right], -1) * (1 - posterior)[..., None]
        return supply


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


def visit(person: Person, grid: Grid, rng: np.random.Generator) -> tuple[Floats, NDArray[np.uint8]]:
    """Flow maps `[2, X, Y, Z]` (0 outside the brain) and the label (1 left, 2 right, 3 both)."""
    indices = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), -1)
    turned = _rotation(np.radians(rng.normal(0, 2, 3)))  # the head lies a little differently each time
    at = (indices @ grid.affine[:3, :3].T + grid.affine[:3, 3]) @ turned.T + rng.normal(0, 1.5, 3)
    brain = person.inside(at)
    supply = person.supply(at)
    flow = person.tissue_flow(at) * brain * rng.normal(1, 0.08)
    blur = [0.6 / np.linalg.norm(grid.affine[:3, i]) * SPACING_MM[1] for i in range(3)]
    maps = []
    for side in range(2):
        arterial = flow * (supply[..., side] * (1 - LEAK) + supply[..., 1 - side] * LEAK) * rng.normal(1, 0.06)
        noise = gaussian_filter(rng.normal(size=grid.shape), (0.5, 0.5, 0)) * NOISE[side] * rng.uniform(0.85, 1.2)
        maps.append((gaussian_filter(arterial, blur) + noise) * brain)
    masks = [_as_drawn((supply[..., side] >= MIN_SUPPLY) & brain) for side in range(2)]
    return np.stack(maps), (masks[0] + 2 * masks[1]).astype(np.uint8)


def _as_drawn(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Remove specks and pinholes slice by slice, so that the mask resembles a manual annotation."""
    stencil = np.ones((3, 3, 1), bool)
    return binary_closing(binary_opening(mask, stencil), stencil) & mask


def synthesize(out: Path, *, subjects: int, seed: int, workers: int = 1) -> None:
    """Write `subjects` people with 1 to 3 visits each to `out`, atomically. A person depends only on the seed and the person's
    number."""
    with atomic_folder(out) as folder:
        for part in ("imagesTr", "labelsTr"):
            (folder / part).mkdir()
        visits = Parallel(n_jobs=workers)(delayed(_write_person)(folder, number, seed) for number in range(1, subjects + 1))
        write_json(folder / "dataset.json", _description(sum(visits)))


def _write_person(folder: Path, number: int, seed: int) -> int:
    rng = np.random.default_rng([seed, number])
    person = Person.draw(rng)
    spacing = np.array(SPACING_MM) * np.array([1, *[rng.choice([1, 1, 0.93, 1.08])] * 2])
    visits = int(rng.integers(1, 4))
    for index in range(1, visits + 1):
        grid = scanner_grid(rng, spacing, number)
        maps, label = visit(person, grid, rng)
        name = f"PerfTerr{number:03d}-v{index}"
        for channel, array in enumerate(maps):
            write_nifti(folder / "imagesTr" / f"{name}_{channel:04d}.nii.gz", array.astype(np.float32), grid)
        write_nifti(folder / "labelsTr" / f"{name}.nii.gz", label, grid)
    return visits


def _description(cases: int) -> dict[str, Any]:
    return {
        "channel_names": {"0": "LICA CBF", "1": "RICA CBF"},
        "labels": {"background": 0, "left": [1, 3], "right": [2, 3]},
        "regions_class_order": [1, 2],
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }

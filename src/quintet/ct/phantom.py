"""A chest phantom: a patient's anatomy and findings in Hounsfield units.

Lengths are in mm, x to the right, y to the front, z up. Findings, in any combination, have sizes and densities from the
literature, and the extent of moderate diffuse disease (FOCI).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Floats = NDArray[np.float32]  # [Z, Y, X] in HU or shares, indices increase towards Superior, Anterior and Right
FINDINGS = ("consolidation", "nodules", "cysts")
AIR, FAT, MUSCLE, BLOOD, BONE = -1000.0, -90.0, 50.0, 45.0, 320.0


@dataclass(frozen=True)
class Foci:
    """The foci of a finding: fraction of the lungs that all of them occupy, drawn uniformly, and diameters, drawn log-uniformly
    (small ones are more frequent)."""

    extent: tuple[float, float]
    diameter_mm: tuple[float, float]


# Diffuse disease. Sizes are from the literature (those that a slice of 8 mm shows), extents are those of moderate disease.
FOCI = {
    # up to about a segment: lungs of 4.5 l have 18 segments, so one has the volume of a ball of 80 mm
    "consolidation": Foci((0.05, 0.25), (30, 80)),
    # up to 30 mm; above it is a mass (Hansell et al. 2008, doi:10.1148/radiol.2462070712)
    "nodules": Foci((0.01, 0.05), (8, 30)),
    # as in lymphangioleiomyomatosis: many, thin-walled, up to 30 mm (Johnson et al. 2010, doi:10.1183/09031936.00076209)
    "cysts": Foci((0.05, 0.25), (8, 30)),
}
Focus = tuple[tuple[float, float, float], float]  # centre (z, y, x) and radius in mm
CYST_WALL_MM = 1.5  # under 2 (Hansell et al. 2008)


@dataclass(frozen=True)
class Patient:
    """Lengths in mm."""

    trunk: tuple[float, float]  # half axes: width, depth
    fat: float
    lung: tuple[float, float, float]  # half axes
    heart: float
    diaphragm: float
    lung_hu: float
    vessels: int
    seed: int

    @staticmethod
    def sample(rng: np.random.Generator) -> "Patient":
        width = float(rng.uniform(150, 185))
        depth = width * float(rng.uniform(0.66, 0.78))
        lung = (0.36 * width * float(rng.uniform(0.93, 1.07)), 0.74 * depth, float(rng.uniform(115, 140)))
        return Patient(
            (width, depth),
            float(rng.uniform(8, 24)),
            lung,
            float(rng.uniform(44, 60)),
            float(rng.uniform(-105, -85)),
            float(rng.normal(-670, 15)),
            int(rng.integers(26, 42)),
            int(rng.integers(2**31)),
        )


@dataclass(frozen=True)
class Space:
    """Voxel centres of a scan, in mm from the middle of the chest."""

    z: Floats
    y: Floats
    x: Floats

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        return float(self.z[1] - self.z[0]), float(self.y[1] - self.y[0]), float(self.x[1] - self.x[0])

    @property
    def grid(self) -> tuple[Floats, Floats, Floats]:
        return self.z[:, None, None], self.y[None, :, None], self.x[None, None, :]

    def ball(self, centre: Sequence[float], radius: float) -> tuple[tuple[slice, ...], Floats]:
        """The slices that contain a ball, and the fraction of each of their voxels that it fills (smoothed over a voxel)."""
        reach = radius + max(self.spacing_mm)
        where = tuple(
            slice(*np.searchsorted(axis, (c - reach, c + reach)))
            for axis, c in zip((self.z, self.y, self.x), centre, strict=True)
        )
        z, y, x = (axis[w] - c for axis, w, c in zip((self.z, self.y, self.x), where, centre, strict=True))
        distance = np.sqrt(z[:, None, None] ** 2 + y[None, :, None] ** 2 + x[None, None, :] ** 2)
        return where, np.clip(0.5 + (radius - distance) / np.mean(self.spacing_mm), 0, 1).astype(np.float32)


def simulate_scan(patient: Patient, findings: tuple[int, ...], space: Space, rng: np.random.Generator) -> NDArray[np.int16]:
    """Hounsfield units `[Z, Y, X]` of one scan; `findings`: 0 or 1 for each of FINDINGS."""
    hu, lungs = _anatomy(patient, space)
    own = np.random.default_rng(patient.seed)
    _vessels(hu, lungs, space, patient, own)
    draw = _foci(lungs, space, rng)
    consolidation, nodules, cysts = findings
    if cysts:
        for centre, radius in draw(FOCI["cysts"]):
            _paint(hu, lungs, space, centre, radius + CYST_WALL_MM, -550)
            _paint(hu, lungs, space, centre, radius, -990)
    if nodules:
        for centre, radius in draw(FOCI["nodules"]):
            _paint(hu, lungs, space, centre, radius, float(rng.uniform(20, 100)))
    if consolidation:
        _consolidate(hu, lungs, space, draw(FOCI["consolidation"]), rng)
    noise = rng.normal(0, float(rng.uniform(12, 30)), hu.shape)
    return np.clip(hu + noise, -1024, 3071).round().astype(np.int16)


def _anatomy(patient: Patient, space: Space) -> tuple[Floats, Floats]:
    """The chest without vessels, and the fraction of each voxel that is lung."""
    z, y, x = space.grid
    (width, depth), (lung_x, lung_y, lung_z) = patient.trunk, patient.lung
    trunk = np.sqrt((x / width) ** 2 + (y / depth) ** 2)
    muscle = np.sqrt((x / (width - patient.fat)) ** 2 + (y / (depth - patient.fat)) ** 2)
    hu = np.where(trunk < 1, np.where(muscle < 1, MUSCLE, FAT), AIR).astype(np.float32) + 0 * z
    cavity = np.sqrt((x / (0.84 * (width - patient.fat))) ** 2 + (y / (0.84 * (depth - patient.fat))) ** 2)
    ribs = (np.abs(cavity - 1.06) < 0.055) & (np.cos(2 * np.pi * (z + 0.45 * y) / 26) > 0.45) & (z > -150)
    hu[np.broadcast_to(ribs, hu.shape)] = BONE
    dome = patient.diaphragm + 32 * np.exp(-((np.abs(x) - 0.5 * width) ** 2 + y**2) / 55**2)
    side = ((np.abs(x) - 0.47 * width) / lung_x) ** 2 + ((y - 4) / lung_y) ** 2 + ((z - 8) / lung_z) ** 2
    softness = 2 / float(np.mean(space.spacing_mm)) * min(patient.lung)
    lungs = np.clip(0.5 + (1 - np.sqrt(side)) * softness / 2, 0, 1) * np.clip(0.5 + (z - dome) / 6, 0, 1) * (cavity < 1)
    heart = ((x + 22) / (1.15 * patient.heart)) ** 2 + ((y - 22) / patient.heart) ** 2 + ((z + 45) / (1.2 * patient.heart)) ** 2
    lungs *= np.clip(0.5 + (np.sqrt(heart) - 1) * 8, 0, 1) * (np.abs(x) > 14)
    gravity = 35 * (-y / depth)  # denser at the back, where blood collects
    hu = hu * (1 - lungs) + lungs * (patient.lung_hu + gravity)
    spine, aorta, trachea = (0.0, -0.62 * depth), (-14.0, -0.38 * depth), (0.0, -0.12 * depth)
    tubes = ((spine, 17.0, 0.8 * BONE, -np.inf), (aorta, 12.0, BLOOD, -np.inf), (trachea, 8.5, AIR, 15.0))
    for centre, radius, value, above in tubes:
        tube = np.sqrt((y - centre[1]) ** 2 + (x - centre[0]) ** 2)
        share = np.clip(0.5 + (radius - tube) / space.spacing_mm[2], 0, 1) * (z > above)
        hu, lungs = hu * (1 - share) + share * value, lungs * (1 - share)
    return hu.astype(np.float32), lungs.astype(np.float32)


def _paint(hu: Floats, lungs: Floats, space: Space, centre: Sequence[float], radius: float, value: float) -> None:
    """Add a ball of one density, within the lungs only."""
    where, share = space.ball(centre, radius)
    share = share * lungs[where]
    hu[where] += share * (value - hu[where])


def _vessels(hu: Floats, lungs: Floats, space: Space, patient: Patient, rng: np.random.Generator) -> None:
    """Add branches that start at the roots of the lungs and taper."""
    for number in range(patient.vessels):
        end = np.array([5.0, -5.0, (1 if number % 2 else -1) * 28.0])
        direction = rng.normal(size=3) * (1, 0.7, 0.5) + (0, 0, np.sign(end[2]) * 0.9)
        for step in range(9):
            direction = direction / np.linalg.norm(direction) + rng.normal(0, 0.22, 3)
            end = end + 11 * direction / np.linalg.norm(direction)
            for back in (0.0, 0.5):
                _paint(hu, lungs, space, tuple(end - back * 11 * direction), 3.8 - 0.3 * step, BLOOD)


def _consolidate(hu: Floats, lungs: Floats, space: Space, foci: Sequence[Focus], rng: np.random.Generator) -> None:
    """Fill regions with ragged borders to the density of soft tissue, which hides the vessels."""
    filled = np.zeros_like(hu)
    for centre, radius in foci:
        where, share = space.ball(centre, radius)
        filled[where] = np.maximum(filled[where], share)
    texture = gaussian_filter(rng.normal(size=hu.shape).astype(np.float32), 2.0)
    filled = lungs * np.clip(filled + 0.25 * texture / texture.std() * (filled > 0), 0, 1)
    hu += filled * np.maximum(float(rng.uniform(-80, 30)) - hu, 0)


def _foci(lungs: Floats, space: Space, rng: np.random.Generator) -> Callable[[Foci], list[Focus]]:
    """A function that draws the foci of a finding, centred inside the lungs."""
    inside, lungs_mm3 = np.argwhere(lungs > 0.9), float(lungs.sum()) * np.prod(space.spacing_mm)

    def draw(foci: Foci) -> list[Focus]:
        drawn, left_mm3 = list[Focus](), float(rng.uniform(*foci.extent)) * lungs_mm3
        while left_mm3 > 0:
            k, j, i = inside[rng.integers(len(inside))]
            radius = float(np.exp(rng.uniform(*np.log(foci.diameter_mm)))) / 2
            drawn.append(((float(space.z[k]), float(space.y[j]), float(space.x[i])), radius))
            left_mm3 -= 4 / 3 * np.pi * radius**3
        return drawn

    return draw

"""A phantom's head: brain, tissue flow, and the share of it that each artery supplies, as smooth fields in head coordinates.

Coordinates are mm: x to the right, y to the front, z up. Flow: grey matter about 65, white 22 ml/100 g/min (Parkes et al. 2004,
doi:10.1002/mrm.20023).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
GREY, WHITE, FLUID = 65.0, 22.0, 4.0  # ml/100 g/min
FETAL = 0.15  # probability, per side, of a posterior cerebral artery that comes from the carotid
OCCLUDED = 0.25  # probability that one carotid is occluded: common where territories are mapped at all
INFARCT = 0.4  # probability of an old infarct; its territory is still the artery's
INFARCT_FLOW = (0.2, 0.5)  # of the normal flow, in the middle
INFARCT_MM = (8.0, 18.0)  # SD of its profile
COLLATERAL_FLOW = (0.5, 0.8)  # of the normal flow: what collaterals deliver behind an occluded artery
DELAY_S = (0.3, 0.9)  # by which collateral flow arrives later
T1_BLOOD_S = 1.65  # the label decays with it; at 3 T (Alsop et al. 2015, doi:10.1002/mrm.25197)
WHITE_DELAY_S = 0.4  # white matter after grey (van Gelderen et al. 2008, doi:10.1002/mrm.21515)
TRANSIT_S = 0.9  # at most: how much later than the nearest tissue the farthest is reached (Mutsaerts et al. 2017,
TRUNK_MM, REACH_MM = (35.0, 5.0, 0.0), 90.0  # doi:10.1177/0271678X16683690); farthest from the middle cerebral artery's trunk


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
        values: Floats = np.cos(at @ self.direction.T + self.phase).sum(-1) * np.sqrt(2 / len(self.phase))
        return values


@dataclass(frozen=True)
class Occlusion:
    """An occluded carotid: the other one takes over the front of its territory (anterior communicating artery), the basilar
    artery some of its back (posterior communicating artery); the rest is reached from its own side. All of it weakly and late.
    """

    side: int  # 0 left, 1 right
    front_mm: float  # by which the other side's territory reaches across, at the front
    back_mm: float  # by which the posterior territory reaches further to the front
    flow: float  # of the normal flow
    delay_s: float

    @staticmethod
    def draw(rng: np.random.Generator) -> "Occlusion":
        flow, delay = rng.uniform(*COLLATERAL_FLOW), rng.uniform(*DELAY_S)
        return Occlusion(int(rng.integers(2)), rng.uniform(18, 34), rng.uniform(5, 20), flow, delay)

    @property
    def signal(self) -> float:
        """Of the normal signal of labelled blood: less flow, of which the label has decayed for longer."""
        return self.flow * float(np.exp(-self.delay_s / T1_BLOOD_S))


@dataclass(frozen=True)
class Infarct:
    centre_mm: Floats  # [3]
    size_mm: float
    flow: float

    @staticmethod
    def draw(rng: np.random.Generator, half_axes_mm: Floats) -> "Infarct":
        direction = rng.normal(size=3) * [1, 1, 0.5]
        centre = half_axes_mm * direction / np.linalg.norm(direction) * rng.uniform(0.3, 0.9)
        return Infarct(centre, rng.uniform(*INFARCT_MM), rng.uniform(*INFARCT_FLOW))

    def __call__(self, at: Floats) -> Floats:
        """The fraction of the normal flow at `[..., 3]` mm."""
        distance = np.square((at - self.centre_mm) / self.size_mm).sum(-1)
        left: Floats = 1 - (1 - self.flow) * np.exp(-np.square(distance) / 4)  # a flat middle
        return left


@dataclass(frozen=True)
class Person:
    half_axes_mm: Floats  # [3]
    folds: Waves
    cortex_mm: float
    midline_mm: float  # where the anterior territories meet
    bend: Waves
    width_mm: float  # over which the supply changes from one side to the other
    posterior_mm: Floats  # [2] left, right: tissue behind it has a posterior supply
    occlusion: Occlusion | None
    infarct: Infarct | None
    transit_s: float
    flow: float

    @staticmethod
    def draw(rng: np.random.Generator) -> "Person":
        fetal = rng.random(2) < FETAL
        half_axes_mm = np.array([70.0, 91.0, 66.0]) * rng.normal(1, 0.035, 3)
        return Person(
            half_axes_mm=half_axes_mm,
            folds=Waves.draw(rng, 24, (14, 30)),
            cortex_mm=rng.uniform(8, 11),
            midline_mm=rng.normal(0, 4),
            bend=Waves.draw(rng, 6, (60, 160)),
            width_mm=rng.uniform(3, 10),
            posterior_mm=np.where(fetal, rng.normal(-72, 6, 2), rng.normal(-38, 9, 2)),
            occlusion=Occlusion.draw(rng) if rng.random() < OCCLUDED else None,
            infarct=Infarct.draw(rng, half_axes_mm) if rng.random() < INFARCT else None,
            transit_s=rng.uniform(0, TRANSIT_S),
            flow=float(rng.normal(1, 0.12)),
        )

    def depth(self, at: Floats) -> Floats:
        """Roughly mm below the surface; negative outside. The base is flatter than the vault."""
        scaled = at / self.half_axes_mm
        scaled = np.where((np.arange(3) == 2) & (at[..., 2:] < 0), scaled * 1.35, scaled)
        radius = np.linalg.norm(scaled, axis=-1)
        fissure = 3.5 * np.exp(-np.abs(at[..., 0]) / 2.5) * (np.linalg.norm(at[..., 1:] / self.half_axes_mm[1:], axis=-1) > 0.75)
        depth: Floats = (1 - radius) * float(self.half_axes_mm.mean()) - fissure
        return depth

    def tissue(self, at: Floats) -> tuple[Floats, Floats]:
        """Flow of all arteries together in ml/100 g/min (0 outside the brain), and how many seconds later than the nearest tissue
        it is reached; both `[...]`."""
        depth = self.depth(at)
        grey = _step((self.cortex_mm - depth - 4.5 * self.folds(at)) / 1.2)
        x, y, z = np.abs(at[..., 0]), at[..., 1], at[..., 2]
        nuclei = ((x - 20) / 12) ** 2 + ((y + 2) / 26) ** 2 + ((z - 5) / 12) ** 2 < 1
        ventricle = ((x - 9) / 6) ** 2 + ((y - 2) / 34) ** 2 + ((z - 18) / 9) ** 2 < 1
        grey = np.where(nuclei, 0.9, grey)
        flow = np.where(ventricle, FLUID, WHITE + (GREY - WHITE) * grey) * self.flow
        if self.infarct is not None:
            flow = flow * self.infarct(at)
        far = np.linalg.norm(np.stack([x, y, z], -1) - TRUNK_MM, axis=-1) / REACH_MM
        delay_s = self.transit_s * np.square(far).clip(0, 1) + WHITE_DELAY_S * (1 - grey)
        return np.where(depth > 0, flow, 0), delay_s

    def supply(self, at: Floats) -> Floats:
        """`[..., 3]`: the shares of the flow that come from the left carotid, the right carotid and the posterior arteries."""
        x, y, z = np.moveaxis(at, -1, 0)
        border = self.midline_mm + 3.5 * self.bend(at)
        limit = self.posterior_mm
        if self.occlusion is not None:
            across = -self.occlusion.front_mm if self.occlusion.side == 0 else self.occlusion.front_mm
            border = border + across / (1 + np.exp(-(y - 5) / 8))
            limit = limit + self.occlusion.back_mm * (np.arange(2) == self.occlusion.side)
        right = _step((x - border) / self.width_mm)
        behind = np.where(x < 0, *limit) - 0.35 * np.maximum(0, z - 10) + 5 * self.bend(at[..., [1, 2, 0]])
        below = -22 - 0.25 * (y + 40)  # cerebellum and brain stem
        posterior = np.maximum(_step((behind - y) / 4), _step((below - z) / 3))
        supply: Floats = np.stack([(1 - right) * (1 - posterior), right * (1 - posterior), posterior], -1)
        return supply

    def labelled_flow(self, at: Floats) -> Floats:
        """`[..., 3]`: the flow that fully labelled arteries would show, per artery: less where the label arrives late."""
        flow, delay_s = self.tissue(at)
        flow = flow * np.exp(-delay_s / T1_BLOOD_S)
        if self.occlusion is not None:
            own = _step(at[..., 0] / (3.0 if self.occlusion.side else -3.0))  # the occluded side of the head
            flow = flow * (1 - own * (1 - self.occlusion.signal))
        return flow[..., None] * self.supply(at)


def _step(x: Floats) -> Floats:
    """From 0 to 1."""
    values: Floats = 1 / (1 + np.exp(-x))
    return values

"""Write semi-synthetic perfusion data: real group-mean flow maps, weighted by the territories of an atlas.

    python benchmarks/perfusion_semisynthetic.py --real ../shared/real/perfusion --out ../semisynthetic --people 40 --seed 0
    quintet check perfusion --data ../semisynthetic
    python benchmarks/perfusion_nnunet.py --raw ../semisynthetic ...   # in nnU-Net's environment

REAL holds two flow maps of ExploreASL (GE_3Dspiral_Product_CBF, Philips_2DEPI_noBsup_CBF; not for commercial use) and
Tatu_ICA_L_ICA_R_PCA (CC BY 4.0) on one grid of 1.5 mm. Each person is a smooth deformation of them with an own mixture of the two
maps, borders and flow; one in five has an occluded carotid, whose front the other one supplies, weakly and late. A visit adds
leaks, gain, noise and a drawn border, with the values of the phantoms (quintet/perfusion/synthetic.py). Labels and maps come from
the same atlas, so scores say how methods compare, not how well patients would be segmented. OUT is an nnU-Net raw folder with
splits_final.json (5 folds by person); it must not exist.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from quintet.files import atomic_folder, write_json
from quintet.imaging.volumes import Grid, write_nifti
from quintet.perfusion import synthetic
from quintet.perfusion.anatomy import Floats, Occlusion, Waves
from quintet.splits import grouped_folds

SHAPE = (60, 76, 14)  # X, Y, Z
CORNER_MM = (-77.4, -116.0, -34.0)  # of the first voxel's centre
WARP_MM, SCALE_SD = 4.0, 0.04  # SD of the smooth deformation and of the size
SOFT_MM = (3.0, 9.0)  # SD of the border between territories
OCCLUDED = 0.2
SLOPE_MM = 8.0  # of the border of what the other side supplies


def _load(path: Path) -> Any:
    """As it is: the flow maps have NaN outside the brain, which quintet refuses."""
    return nib.load(path)


@dataclass(frozen=True)
class Atlas:
    flows: list[Floats]  # of the two scanners, [X, Y, Z]
    territories: list[Floats]  # of the left, the right and the posterior arteries, 0 or 1
    affine: Floats

    @staticmethod
    def read(real: Path) -> "Atlas":
        flows = [
            np.nan_to_num(_load(real / f"{name}.nii.gz").get_fdata())
            for name in ("GE_3Dspiral_Product_CBF", "Philips_2DEPI_noBsup_CBF")
        ]
        image = _load(real / "Tatu_ICA_L_ICA_R_PCA.nii.gz")
        codes, affine = np.asarray(image.dataobj), image.affine
        first_x_mm = affine[0, 0] * np.argwhere(codes == 1)[:, 0].mean() + affine[0, 3]
        sides = (1, 2) if first_x_mm < 0 else (2, 1)
        return Atlas(flows, [(codes == code).astype(float) for code in (*sides, 3)], affine)

    def sample(self, volume: Floats, at: Floats) -> Floats:
        """The volume at `[..., 3]` mm."""
        indices = (at - self.affine[:3, 3]) @ np.linalg.inv(self.affine[:3, :3]).T
        values: Floats = map_coordinates(volume, np.moveaxis(indices, -1, 0), order=1)
        return values


@dataclass(frozen=True)
class Head:
    """A person: a deformed atlas."""

    atlas: Atlas
    flow: Floats  # on the atlas's grid
    soft: list[Floats]
    scale: float
    warps: list[Waves]
    occlusion: Occlusion | None

    @staticmethod
    def draw(atlas: Atlas, rng: np.random.Generator) -> "Head":
        mixture, sigma = rng.random(), rng.uniform(*SOFT_MM) / 1.5
        flow = (mixture * atlas.flows[0] + (1 - mixture) * atlas.flows[1]) * rng.normal(1, 0.12)
        soft = [gaussian_filter(territory, sigma) for territory in atlas.territories]
        warps = [Waves.draw(rng, 6, (60, 160)) for _ in range(3)]
        occlusion = Occlusion.draw(rng) if rng.random() < OCCLUDED else None
        return Head(atlas, flow, soft, rng.normal(1, SCALE_SD), warps, occlusion)

    def __call__(self, at: Floats) -> tuple[Floats, Floats]:
        """Labelled flow and supply, both `[..., 3]` (left, right, posterior), at `[..., 3]` mm."""
        there = at * self.scale + WARP_MM * np.stack([warp(at) for warp in self.warps], -1)
        soft = np.stack([self.atlas.sample(territory, there) for territory in self.soft], -1)
        supply = soft / soft.sum(-1, keepdims=True).clip(1e-3)
        flow = self.atlas.sample(self.flow, there)
        if self.occlusion is not None:
            side, inward = self.occlusion.side, there[..., 0] * (1 if self.occlusion.side else -1)
            collateral = _step((there[..., 1] - 5) / SLOPE_MM) * _step((self.occlusion.front_mm - inward) / SLOPE_MM)
            supply[..., 1 - side] += collateral * supply[..., side]
            supply[..., side] *= 1 - collateral
            flow = flow * (1 - _step(inward / 3) * (1 - self.occlusion.signal))
        return flow[..., None] * supply, supply


def _step(x: Floats) -> Floats:
    values: Floats = 1 / (1 + np.exp(-x))
    return values


def write_visit(folder: Path, name: str, head: Head, rng: np.random.Generator) -> None:
    spacing = np.array(synthetic.SPACING_MM[::-1])
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = np.array(CORNER_MM) + rng.normal(0, 2, 3)
    grid = Grid(SHAPE, affine)
    at = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), -1) * spacing + affine[:3, 3]
    flow, supply = head(at)
    brain = flow.sum(-1) > 2
    for side in range(2):
        shown = synthetic.Labelling.draw(rng)(flow, side, at)
        noise = gaussian_filter(rng.normal(size=SHAPE), (0.5, 0.5, 0))
        shown += noise * synthetic.NOISE[side] / 2 / noise.std()  # half: group-mean flow has less contrast
        write_nifti(folder / "imagesTr" / f"{name}_{side:04d}.nii.gz", (shown * brain).astype(np.float32), grid)
    drawn = [synthetic.as_drawn(supply[..., side] >= synthetic.MIN_SUPPLY, at, spacing, rng) & brain for side in range(2)]
    write_nifti(folder / "labelsTr" / f"{name}.nii.gz", (drawn[0] + 2 * drawn[1]).astype(np.uint8), grid)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--people", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.out.exists():
        parser.error(f"--out {options.out} exists already")
    atlas, cases, occluded = Atlas.read(options.real), [], []
    with atomic_folder(options.out) as folder:
        for part in ("imagesTr", "labelsTr"):
            (folder / part).mkdir()
        for number in range(1, options.people + 1):
            rng = np.random.default_rng([options.seed, number])
            head = Head.draw(atlas, rng)
            occluded += [f"Semi{number:03d}"] * (head.occlusion is not None)
            for visit in range(1, int(rng.integers(1, 3)) + 1):
                cases.append(f"Semi{number:03d}-v{visit}")
                write_visit(folder, cases[-1], head, rng)
        fold_of = grouped_folds([case.split("-")[0] for case in cases], 5, seed=options.seed)
        held_out = [{c for c, fold in zip(cases, fold_of, strict=True) if fold == k} for k in range(5)]
        folds = [{"train": [c for c in cases if c not in val], "val": sorted(val)} for val in held_out]
        write_json(folder / "splits_final.json", folds)
        write_json(folder / "dataset.json", synthetic.description(len(cases)))
    print(f"{len(cases)} cases of {options.people} people in {options.out}; occluded: {', '.join(occluded)}")


if __name__ == "__main__":
    main()

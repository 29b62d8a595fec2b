"""The phantoms: flow, noise, territories, and grids as the study's scanners have them."""

import json

import nibabel as nib
import numpy as np
import pytest

from quintet.perfusion import synthetic
from quintet.perfusion.synthetic import Person, scanner_grid, synthesize, visit


@pytest.fixture(scope="module")
def people():
    """Flow maps and labels of 24 people with 2 visits each, on plain grids."""
    found = []
    for number in range(1, 25):
        rng = np.random.default_rng([7, number])
        person = Person.draw(rng)
        grid = scanner_grid(rng, np.array(synthetic.SPACING_MM), 2)
        found.append((person, [visit(person, grid, rng) for _ in range(2)]))
    return found


def test_layout_is_nnunets(flow_maps):
    names = sorted(p.name for p in (flow_maps / "labelsTr").iterdir())
    images = sorted(p.name for p in (flow_maps / "imagesTr").iterdir())
    assert images == sorted(n.replace(".nii.gz", f"_{c:04d}.nii.gz") for n in names for c in range(2))
    assert len({n.split("-")[0] for n in names}) == 6
    assert json.loads((flow_maps / "dataset.json").read_text())["labels"] == {"background": 0, "left": [1, 3], "right": [2, 3]}


def test_same_seed_same_people_whoever_draws_them(flow_maps, tmp_path):
    from quintet.files import md5

    synthesize(tmp_path / "again", subjects=6, seed=3, workers=2)
    assert md5(tmp_path / "again") == md5(flow_maps)
    synthesize(tmp_path / "fewer", subjects=2, seed=3)
    one = "imagesTr/PerfTerr002-v1_0000.nii.gz"
    assert md5(tmp_path / "fewer" / one) == md5(flow_maps / one)


def test_grids_are_oblique_flipped_and_of_the_references_size(flow_maps):
    images = [nib.load(p) for p in sorted((flow_maps / "labelsTr").iterdir())]
    axes = {nib.aff2axcodes(i.affine) for i in images}
    assert len(axes) > 1
    tilted = [np.abs(i.affine[:3, :3] / np.linalg.norm(i.affine[:3, :3], axis=0)).max(0).min() < 0.9999 for i in images]
    assert any(tilted)
    assert not all(tilted)
    assert {i.shape for i in images} == {(64, 80, 14)}
    spacing = np.median([sorted(i.header.get_zooms()) for i in images], axis=0)
    np.testing.assert_allclose(spacing, [2.625, 2.625, 6.6], rtol=0.08)


def test_flow_is_physiological_and_noise_depends_on_the_channel(people):
    grey, white, noise = [], [], []
    for person, visits in people:
        grid = scanner_grid(np.random.default_rng(0), np.array(synthetic.SPACING_MM), 2)
        at = (
            np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), -1) @ grid.affine[:3, :3].T
            + grid.affine[:3, 3]
        )
        deep, flow = person.depth(at), person.tissue_flow(at) / person.flow
        grey.append(np.quantile(flow[deep > 0], 0.95))
        white.append(np.median(flow[deep > 20]))
        for maps, label in visits:
            noise.append([maps[side][(label == 0) & (maps[side] != 0)].std() for side in range(2)])
    assert 55 < np.mean(grey) < 75
    assert 18 < np.mean(white) < 30
    ratio = np.mean(noise, axis=0)
    assert ratio[1] > 1.2 * ratio[0]


def test_maps_show_their_own_territory(people):
    for _, visits in people:
        for maps, label in visits:
            left, right = (label & 1) > 0, (label & 2) > 0
            assert maps[0][left & ~right].mean() > 4 * abs(maps[0][right & ~left].mean())
            assert maps[1][right & ~left].mean() > 4 * abs(maps[1][left & ~right].mean())


def test_territories_differ_between_people_and_stay_with_a_person(people):
    """Share of the left territory: the spread between people is several times that between visits."""
    share = np.array([[((label & 1) > 0).sum() / (label > 0).sum() for _, label in visits] for _, visits in people])
    between, within = share.mean(1).std(), (share[:, 0] - share[:, 1]).std() / np.sqrt(2)
    assert between > 4 * within
    assert between > 0.03


def test_there_are_overlap_zones_and_occluded_sides(people):
    overlap = [(visits[0][1] == 3).sum() / (visits[0][1] > 0).sum() for _, visits in people]
    assert min(overlap) > 0
    assert np.mean(overlap) > 0.02
    occluded = [p.occluded is not None for p, _ in people]
    assert any(occluded)
    lopsided = np.array([abs((v[0][1] & 1 > 0).sum() - (v[0][1] & 2 > 0).sum()) / (v[0][1] > 0).sum() for _, v in people])
    assert lopsided[occluded].mean() > 2 * lopsided[np.logical_not(occluded)].mean()

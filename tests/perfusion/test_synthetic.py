"""The phantoms: flow, noise, territories, and grids as the study's scanners have them."""

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from quintet.perfusion import synthetic
from quintet.perfusion.anatomy import Person
from quintet.perfusion.synthetic import scanner_grid, synthesize, visit


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


def head_coordinates(grid):
    indices = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), -1)
    return indices @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def test_flow_is_physiological_and_noise_depends_on_the_channel(people):
    grey, white, noise = [], [], []
    at = head_coordinates(scanner_grid(np.random.default_rng(0), np.array(synthetic.SPACING_MM), 2))
    for person, visits in people:
        deep, flow = person.depth(at), person.tissue(at)[0] / person.flow
        grey.append(np.quantile(flow[deep > 0], 0.95))
        white.append(np.median(flow[deep > 20]))
        for seen in visits:
            rough = seen.maps[:, 1:] - seen.maps[:, :-1]  # of neighbours in the brain, mostly noise
            inside = (seen.maps[0, 1:] != 0) & (seen.maps[0, :-1] != 0) & (seen.truth[1:] == 0)
            noise.append([np.median(np.abs(rough[side][inside])) for side in range(2)])
    assert 55 < np.mean(grey) < 75
    assert 18 < np.mean(white) < 30
    ratio = np.mean(noise, axis=0)
    assert ratio[1] > 1.2 * ratio[0]


def test_a_map_is_its_artery_and_leaks_within_the_stated_range():
    """Where a single artery supplies the tissue, the ratio of map to flow is efficiency or leak times gain."""
    rng = np.random.default_rng(0)
    at = rng.uniform(-60, 60, (500, 3))
    for _ in range(50):
        labelling = synthetic.Labelling.draw(rng)
        gain = np.exp(labelling.gain + synthetic.GAIN_SD * labelling.fields[2](at)) / synthetic.ASSUMED_EFFICIENCY
        own, other, posterior = (labelling(np.eye(3)[[artery] * len(at)], 0, at) / gain for artery in range(3))
        np.testing.assert_allclose(own, labelling.efficiency)
        assert 0.3 < labelling.efficiency <= 1
        for leak in (other, posterior):
            assert synthetic.LEAK[0] - 1e-9 <= leak.min() <= leak.max() <= synthetic.LEAK[1] + 1e-9


def test_the_annotator_moves_inner_borders_by_the_stated_distance(people):
    """Displacements have a median of 0.67 SD; pixels that change lie within 4 SD of the true border."""
    shares = []
    for _, visits in people[:8]:
        for seen in visits:
            true, drawn = (seen.truth & 1) > 0, (seen.label & 1) > 0
            brain = seen.maps[0] != 0
            far = [2.625, 2.625, 1e6]
            inside, outside = (distance_transform_edt(m, sampling=far) for m in (true | ~brain, ~true))
            changed = true != drawn
            assert changed.any()
            assert np.minimum(inside, outside)[changed & brain].max() < 1e3
            from_border = np.where(true, inside, outside)[changed]
            shares.append((from_border < 4 * synthetic.ANNOTATOR_MM).mean())
    assert np.mean(shares) > 0.98


def test_maps_show_their_own_territory(people):
    ratios = []
    for _, visits in people:
        for seen in visits:
            left, right = seen.truth == 1, seen.truth == 2
            ratios.append(seen.maps[0][left].mean() / seen.maps[0][right].mean())
            ratios.append(seen.maps[1][right].mean() / seen.maps[1][left].mean())
    assert min(ratios) > 1  # least where a collateral's weak flow is beside a leak
    assert np.median(ratios) > 3


def test_territories_differ_between_people_and_stay_with_a_person(people):
    """Share of the left territory: the spread between people is several times that between visits."""
    share = np.array([[((v.label & 1) > 0).sum() / (v.label > 0).sum() for v in visits] for _, visits in people])
    between, within = share.mean(1).std(), (share[:, 0] - share[:, 1]).std() / np.sqrt(2)
    assert between > 4 * within
    assert between > 0.03


def test_there_are_overlap_zones_and_occluded_sides(people):
    overlap = [(visits[0].label == 3).sum() / (visits[0].label > 0).sum() for _, visits in people]
    assert min(overlap) > 0
    assert np.mean(overlap) > 0.02
    occluded = np.array([p.occlusion is not None for p, _ in people])
    assert 0.05 < occluded.mean() < 0.6
    sizes = [[(seen[0].truth & bit > 0).sum() for bit in (1, 2)] for _, seen in people]
    lopsided = np.array([abs(left - right) / (left + right) for left, right in sizes])
    assert lopsided[occluded].mean() > 2 * lopsided[~occluded].mean()
    for (person, _), (left, right) in zip(people, sizes, strict=True):
        if person.occlusion is not None and person.midline_mm * (1 if person.occlusion.side else -1) > -4:
            assert (left < right) == (person.occlusion.side == 0)


def test_collateral_flow_is_weak_on_the_occluded_side_alone():
    rng = np.random.default_rng(3)
    person = next(p for p in iter(lambda: Person.draw(rng), None) if p.occlusion is not None)
    at = np.stack([np.array([-45.0, 45.0]), np.zeros(2), np.full(2, 10.0)], -1)  # left, right
    open_ = replace(person, occlusion=None)
    ratio = person.labelled_flow(at).sum(-1) / open_.labelled_flow(at).sum(-1)
    side = person.occlusion.side
    assert ratio[side] == pytest.approx(person.occlusion.signal, rel=1e-3)
    assert ratio[1 - side] == pytest.approx(1, rel=1e-3)
    assert 0.25 < person.occlusion.signal < 0.7

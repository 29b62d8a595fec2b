import numpy as np
import pandas as pd
import pydicom
import pytest

from quintet.ct.phantom import FINDINGS, FOCI, Patient, Space, simulate_scan
from quintet.ct.synthetic import SETS, cohort, read_by_reader
from quintet.files import md5
from tests.ct.conftest import SMALL


def space(matrix=48, slices=40):
    counts, steps = (slices, matrix, matrix), (7.0, 7.5, 7.5)
    return Space(*(((np.arange(n) - (n - 1) / 2) * mm).astype(np.float32) for n, mm in zip(counts, steps, strict=True)))


def test_series_are_valid_dicom_with_varied_positions_and_encodings(scans):
    facts = []
    for folder in sorted(p for p in scans.iterdir() if p.is_dir()):
        slices = [pydicom.dcmread(path) for path in folder.iterdir()]
        assert len({s.SeriesInstanceUID for s in slices}) == 1
        assert len({s.SOPInstanceUID for s in slices}) == len(slices)
        assert all(pydicom.uid.UID(s.SOPInstanceUID).is_valid for s in slices)
        one = slices[0]
        order = [s.InstanceNumber for s in sorted(slices, key=lambda s: s.ImagePositionPatient[2])]
        facts.append(
            (
                one.PatientPosition,
                float(one.SliceThickness),
                order[0] == 1,
                int(one.PixelRepresentation),
                str(one.file_meta.TransferSyntaxUID),
                str(one.ImageOrientationPatient),
            )
        )
        names = [p.name for p in sorted(folder.iterdir(), key=lambda p: pydicom.dcmread(p).ImagePositionPatient[2])]
        assert names != sorted(names)
    table = pd.DataFrame(facts)
    assert (table.nunique() >= [3, 3, 2, 2, 2, 3]).all()
    assert len(list(scans.glob("*.nii.gz"))) == 10


def test_truth_has_all_sets_and_labels_have_a_readers_errors(scans):
    labels, truth = (pd.read_csv(scans / f"{name}.csv") for name in ("labels", "truth"))
    assert set(map(tuple, truth[list(FINDINGS)].to_numpy().tolist())) == set(SETS)
    assert (truth["patient"].value_counts() > 1).any()
    assert labels[["study", "patient"]].equals(truth[["study", "patient"]])
    assert 0 < (labels[list(FINDINGS)] != truth[list(FINDINGS)]).to_numpy().mean() < 0.12


def test_prevalence_association_and_reader():
    """Of many scans: the fractions that the parameters state, and findings that occur together more often than by chance."""
    prevalence = {"consolidation": 0.3, "nodules": 0.4, "cysts": 0.25}
    for association in (0.0, 0.5):
        rows = cohort(20_000, np.random.default_rng(0), prevalence=prevalence, association=association)
        found = np.array([findings for _, findings in rows])
        assert found.mean(0) == pytest.approx(list(prevalence.values()), abs=0.03)
        assert np.corrcoef(found.T)[0, 1] == pytest.approx(0.3 if association else 0.0, abs=0.05)
    reported = read_by_reader(found, np.random.default_rng(1), sensitivity=0.9, specificity=0.8)
    assert reported[found == 1].mean() == pytest.approx(0.9, abs=0.01)
    assert reported[found == 0].mean() == pytest.approx(0.2, abs=0.01)


def test_findings_occupy_the_stated_part_of_the_lungs():
    """In the same patient: consolidation and nodules raise the density of the lung, cysts lower it. Foci overlap and end at the
    lungs' borders, so they occupy less than the sum of their volumes."""
    patient = Patient.sample(np.random.default_rng(4))
    alone = {name: tuple(int(name == other) for other in FINDINGS) for name in FINDINGS}
    fractions = {name: [] for name in FINDINGS}
    for seed in range(6):
        none = simulate_scan(patient, (0, 0, 0), space(), np.random.default_rng(seed)).astype(float)
        lung = (none > -850) & (none < -550)
        assert none.min() >= -1024
        assert none.max() > 250  # bone
        for name, findings in alone.items():
            change = (simulate_scan(patient, findings, space(), np.random.default_rng(seed)).astype(float) - none)[lung]
            fractions[name].append((change < -150).mean() if name == "cysts" else (change > 250).mean())
    for name, found in fractions.items():
        low, high = FOCI[name].extent
        assert 0.3 * low < np.mean(found) < high


def test_same_seed_same_files(tmp_path, make_params):
    from quintet.ct.synthetic import synthesize

    params = make_params(SMALL).ct.synthetic
    for name in "ab":
        synthesize(tmp_path / name, params, workers=2 if name == "a" else 1)
    assert md5(tmp_path / "a") == md5(tmp_path / "b")


def test_scans_of_a_patient_are_similar(cubes):
    """Scans of one patient resemble each other more than those of others, so excluding them from the gallery matters."""
    from quintet.ct.data.prepared import load

    data = load(cubes)
    volumes = data.volumes.reshape(len(data.volumes), -1).astype(np.float32)
    difference = np.abs(volumes[:, None] - volumes[None]).mean(2)
    patients = data.table["patient"].to_numpy()
    own = (patients[:, None] == patients[None]) & ~np.eye(len(patients), dtype=bool)
    assert own.sum() > 10
    assert difference[own].mean() < 0.9 * difference[patients[:, None] != patients[None]].mean()

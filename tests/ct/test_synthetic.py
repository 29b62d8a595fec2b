import numpy as np
import pandas as pd
import pydicom

from quintet.ct.synthetic import FINDINGS, SETS, Patient, Space, cohort, simulate_scan
from quintet.files import md5


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


def test_labels_have_all_sets_and_some_patients_have_several_scans(scans):
    table = pd.read_csv(scans / "labels.csv")
    assert set(map(tuple, table[list(FINDINGS)].to_numpy().tolist())) == set(SETS)
    assert (table["patient"].value_counts() > 1).any()
    rows = cohort(400, np.random.default_rng(0))
    people = pd.DataFrame(rows, columns=["patient", "findings"])
    assert (people.groupby("findings")["patient"].nunique() >= 10).all()


def test_findings_are_in_the_voxels():
    """In the same patient, consolidation and nodules raise the density of the lung, and cysts lower it."""
    patient = Patient.sample(np.random.default_rng(4))
    hu = {}
    for findings in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)):
        hu[findings] = simulate_scan(patient, findings, space(), np.random.default_rng(5)).astype(float)
    lung = (hu[0, 0, 0] > -850) & (hu[0, 0, 0] < -550)
    assert lung.mean() > 0.05
    soft = {f: (v[lung] > -300).mean() for f, v in hu.items()}
    empty = {f: (v[lung] < -900).mean() for f, v in hu.items()}
    assert soft[1, 0, 0] > 0.05
    assert soft[0, 1, 0] > 0.02
    assert empty[0, 0, 1] > 0.1 > 5 * empty[0, 0, 0]
    assert hu[0, 0, 0].min() >= -1024
    assert hu[0, 0, 0].max() > 250  # bone


def test_same_seed_same_files(tmp_path):
    from quintet.ct.synthetic import synthesize

    for name in "ab":
        synthesize(tmp_path / name, scans=12, matrix=32, seed=9, workers=2 if name == "a" else 1)
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

"""Predictions as DICOM objects: they refer to their images, lie where the results lie, and name no person unless asked to."""

import highdicom as hd
import nibabel as nib
import numpy as np
import pandas as pd
import pydicom
import pytest
from typer.testing import CliRunner

from quintet.cli import app
from quintet.ct.synthetic import write_series
from quintet.errors import InputError, InputProblemsError
from quintet.imaging.dicom import read_series
from quintet.serving.dicom import write_reports, write_segmentations
from tests.imaging.test_pictures import write

PERSONAL = {
    "PatientName": "Doe^Jane",
    "PatientID": "MRN-4711",
    "PatientAddress": "1 Main St",
    "ReferringPhysicianName": "House^G",
}
UIDS = {"StudyInstanceUID": "1.2.9", "SeriesInstanceUID": "1.2.8", "Modality": "DX"}


@pytest.fixture
def x_rays(tmp_path):
    """Two X-rays, and what `quintet predict landmarks` writes of them."""
    (tmp_path / "in").mkdir()
    for number, name in enumerate(("a", "b"), start=1):
        write(tmp_path / "in" / f"{name}.dcm", **UIDS, **PERSONAL, SOPInstanceUID=f"1.2.3.{number}")
    points = np.random.default_rng(0).uniform(1, 29, (2, 30)).round(1)
    table = pd.DataFrame(points).assign(stem=["a", "b"])
    table.to_csv(tmp_path / "p.csv", header=False)
    expected = pd.DataFrame(np.full((2, 15), 3.5), columns=[f"expected_error_px_{k:02d}" for k in range(15)])
    expected.assign(stem=["a", "b"]).to_csv(tmp_path / "p.csv.uncertainty.csv", index=False)
    return tmp_path, points


def texts(path):
    return path.read_bytes().decode("latin-1")


def test_a_report_has_the_points_and_refers_to_its_image(x_rays):
    folder, points = x_rays
    done = CliRunner().invoke(
        app,
        ["dicom", "landmarks", "--predictions", f"{folder}/p.csv", "--source", f"{folder}/in", "--output", f"{folder}/out"],
    )
    assert done.output.strip() == f"2 DICOM files written: {folder}/out", done.exception
    for number, name in enumerate(("a", "b")):
        report = hd.sr.srread(folder / "out" / f"{name}.dcm")
        groups = report.content.get_planar_roi_measurement_groups()
        found = np.array([group.roi.value[0] for group in groups])
        assert np.allclose(found, points[number].reshape(15, 2) + 0.5, atol=1e-3)  # DICOM counts from the corner
        assert {str(group.get_measurements()[0].value) for group in groups} == {"3.5"}
        assert report.StudyInstanceUID == "1.2.9"
        (evidence,) = report.CurrentRequestedProcedureEvidenceSequence
        assert evidence.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == f"1.2.3.{number + 1}"
        assert not any(value.split("^")[0] in texts(folder / "out" / f"{name}.dcm") for value in PERSONAL.values())


def test_person_tags_are_copied_on_request(x_rays):
    folder, _ = x_rays
    write_reports(folder / "p.csv", folder / "in", folder / "out", person=True)
    report = pydicom.dcmread(folder / "out" / "a.dcm")
    assert (report.PatientName, report.PatientID) == ("Doe^Jane", "MRN-4711")


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["anna/IM1.dcm", "bert/IM1.dcm"], ["anna/IM1.dcm", "bert/IM1.dcm"]),  # one name in each person's folder
        (["scan.dcm", "scan.2.dcm"], ["scan", "scan.2"]),
        (["1.2.840.1.dcm", "1.2.840.2.dcm"], ["1.2.840.1", "1.2.840.2"]),
    ],
)
def test_every_report_is_about_its_own_image(x_rays, files, names):
    folder, points = x_rays
    for old, new in zip(("a.dcm", "b.dcm"), files, strict=True):
        (folder / "in" / new).parent.mkdir(exist_ok=True)
        (folder / "in" / old).rename(folder / "in" / new)
    pd.DataFrame(points).assign(stem=names).to_csv(folder / "p.csv", header=False)
    expected = pd.DataFrame([[1.5] * 15, [2.5] * 15]).assign(stem=names)
    expected[::-1].to_csv(folder / "p.csv.uncertainty.csv", index=False)  # sorted otherwise
    assert write_reports(folder / "p.csv", folder / "in", folder / "out", person=False) == 2
    for number, name in enumerate(files):
        report = hd.sr.srread(folder / "out" / name)
        (evidence,) = report.CurrentRequestedProcedureEvidenceSequence
        assert evidence.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == f"1.2.3.{number + 1}"
        groups = report.content.get_planar_roi_measurement_groups()
        assert {float(group.get_measurements()[0].value) for group in groups} == {1.5 + number}
        found = [group.roi.value[0] for group in groups]
        assert np.allclose(found, points[number].reshape(15, 2) + 0.5, atol=1e-3)  # DICOM counts from the corner


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "no rows"),
        ("0,1,2,x,4,a\n", "row 1: a: expected a number"),
        ("0,1,2,3,a\n", "row 1: a: expected a number"),
        ("0,1,2,3,4,a\n1,1,2,b\n", "row 2: b: expected a number, the same points"),
        ("0,1,2,3,4,a\n1,1,2,3,4,a\n", "row 2: a is there twice"),
    ],
)
def test_tables_that_are_no_points_are_named(x_rays, table, message):
    folder, _ = x_rays
    (folder / "p.csv").write_text(table)
    with pytest.raises(InputProblemsError, match=message):
        write_reports(folder / "p.csv", folder / "in", folder / "out", person=False)


def test_points_of_another_image_and_expected_errors_of_other_rows(x_rays):
    folder, _ = x_rays
    (folder / "p.csv").write_text("0,1,2,3,4,a\n1,1,2,3,99,b\n")
    with pytest.raises(InputError, match="a point of b is outside its image of 30 x 40 pixels"):
        write_reports(folder / "p.csv", folder / "in", folder / "out", person=False)
    (folder / "p.csv").write_text("0,1,2,3,4,a\n")
    with pytest.raises(InputError, match=r"uncertainty\.csv: its rows are not those of"):
        write_reports(folder / "p.csv", folder / "in", folder / "out", person=False)
    with pytest.raises(InputError, match=r"absent\.csv: cannot be read"):
        write_reports(folder / "absent.csv", folder / "in", folder / "out", person=False)


def test_a_name_of_two_images_is_refused(x_rays):
    folder, _ = x_rays
    (folder / "in" / "other").mkdir()
    (folder / "in" / "b.dcm").rename(folder / "in" / "other" / "a.dcm")
    with pytest.raises(InputProblemsError, match="a: 2 DICOM images below"):
        write_reports(folder / "p.csv", folder / "in", folder / "out", person=False)
    assert not (folder / "out").exists()


def test_a_row_without_image_is_named(x_rays):
    folder, _ = x_rays
    (folder / "in" / "b.dcm").rename(folder / "in" / "c.png")
    with pytest.raises(InputProblemsError, match=r"b: no DICOM image b\.dcm below"):
        write_reports(folder / "p.csv", folder / "in", folder / "out", person=False)
    (folder / "in" / "b.dcm").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"b\.dcm: not a readable DICOM file"):
        write_reports(folder / "p.csv", folder / "in", folder / "out", person=False)
    assert not (folder / "out").exists()


def test_series_that_no_segmentation_can_refer_to_are_named(tmp_path):
    """All of them at once."""
    array = np.random.default_rng(0).integers(0, 500, (4, 10, 12)).astype(np.int16)
    for case in ("two", "placeless", "empty"):
        write_series(tmp_path / "in" / case, array, (5.0, 2.0, 2.0))
    (tmp_path / "results").mkdir()
    for case in ("two", "placeless", "empty"):
        grid = read_series(tmp_path / "in" / case).grid
        nib.save(nib.Nifti1Image(np.ones(grid.shape, np.uint8), grid.affine), tmp_path / "results" / f"{case}.nii.gz")
    for path in (tmp_path / "in" / "empty").iterdir():
        path.unlink()
    for number, path in enumerate(sorted((tmp_path / "in" / "two").iterdir())):
        image = pydicom.dcmread(path)
        image.SeriesInstanceUID = f"1.2.{number % 2}"
        image.save_as(path)
    for path in (tmp_path / "in" / "placeless").iterdir():
        image = pydicom.dcmread(path)
        del image.FrameOfReferenceUID
        image.save_as(path)
    with pytest.raises(InputProblemsError) as caught:
        write_segmentations(tmp_path / "results", tmp_path / "in", tmp_path / "out", person=False)
    empty, placeless, two = caught.value.problems
    assert "empty: no file in" in empty
    assert "no FrameOfReferenceUID" in placeless
    assert "two: 2 series in" in two


@pytest.fixture(params=["HFS", "FFP"])
def territories(request, tmp_path):
    """A series of any patient position, and a label map on its grid with reversed axes."""
    array = np.random.default_rng(0).integers(0, 500, (6, 20, 24)).astype(np.int16)
    write_series(tmp_path / "in" / "case", array, (5.0, 2.0, 2.0), position=request.param)
    grid = read_series(tmp_path / "in" / "case").grid
    labels = np.random.default_rng(1).integers(0, 4, grid.shape).astype(np.uint8)
    image = nib.Nifti1Image(labels, grid.affine).as_reoriented([[0, -1], [1, 1], [2, -1]])
    (tmp_path / "results").mkdir()
    nib.save(image, tmp_path / "results" / "case.nii.gz")
    nib.save(image, tmp_path / "results" / "case_probabilities.nii.gz")
    return tmp_path, labels, read_series(tmp_path / "in" / "case")


def test_a_segmentation_lies_on_its_series(territories):
    folder, labels, series = territories
    assert write_segmentations(folder / "results", folder / "in", folder / "out", person=False) == 1
    found = hd.seg.segread(folder / "out" / "case.dcm")
    uids = [pydicom.dcmread(s.path, stop_before_pixels=True).SOPInstanceUID for s in series.slices]
    pixels = found.get_pixels_by_source_instance(uids, segment_numbers=[1, 2], assert_missing_frames_are_empty=True)
    for k in range(len(uids)):
        plane = labels[:, :, k].T  # [rows, columns]
        assert (pixels[k, ..., 0] == (plane & 1)).all()
        assert (pixels[k, ..., 1] == (plane >> 1 & 1)).all()
    assert [found.get_segment_description(n).segment_label.split()[4] for n in (1, 2)] == ["left", "right"]


def test_a_series_that_lacks_slices_is_refused(territories):
    folder, _, _ = territories
    files = sorted(path for path in (folder / "in" / "case").rglob("*") if path.is_file())
    for path in files[len(files) // 2 :]:
        path.unlink()
    with pytest.raises(InputProblemsError, match=r"of the territories of case\.nii\.gz; is it complete"):
        write_segmentations(folder / "results", folder / "in", folder / "out", person=False)


def test_a_result_of_another_series_is_named(territories):
    folder, _, _ = territories
    image = nib.load(folder / "results" / "case.nii.gz")
    affine = image.affine.copy()
    affine[2, 3] += 100
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), folder / "results" / "case.nii.gz")
    nib.save(image, folder / "results" / "other.nii.gz")
    with pytest.raises(InputProblemsError) as caught:
        write_segmentations(folder / "results", folder / "in", folder / "out", person=False)
    assert "case: " in caught.value.problems[0]
    assert "lies outside case.nii.gz" in caught.value.problems[0]
    assert "other: no folder" in caught.value.problems[1]
    assert not (folder / "out").exists()

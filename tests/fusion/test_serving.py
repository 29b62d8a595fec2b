"""A fusion run as MLflow serves it: a row of the clinical table, with and without images."""

import shutil

import numpy as np
import pandas as pd

from quintet.experiment import predict_folder
from quintet.serving.loader import Served
from tests.served import ask, model_folder, post, served


def test_a_row_of_the_clinical_table_gets_a_prediction(trained, raw, tmp_path):
    table = pd.read_csv(raw / "clinical_data.csv")
    columns = [column.name for column in Served(model_folder(trained[0], tmp_path / "names"), "cpu").models[0].encoder.columns]
    rows = [
        {name: None if pd.isna(value) else value for name, value in zip(columns, values, strict=True)}
        for values in table[columns].head(3).itertuples(index=False)
    ]
    unknown = dict.fromkeys(columns)
    with served(trained[0], tmp_path) as address:
        found = ask(address, rows)
        refused = post(address, [unknown | {"pet": b"no image"}])
        empty = post(address, [unknown])
        misspelt = post(address, [{name + "s" * (name == columns[0]): value for name, value in rows[0].items()}])
        assert ask(address, rows[:1])["spread"].notna().all()
    assert (found["modalities"] == "clinical").all()
    assert np.allclose(found.filter(like="probability_").sum(axis=1), 1)
    assert found.filter(like="probability_").nunique().max() == 3
    assert refused.status_code == empty.status_code == misspelt.status_code == 400
    assert "row-0000000/pet.nii" in refused.json()["message"]
    assert "no modality" in empty.json()["message"]
    assert f"missing inputs ['{columns[0]}']" in misspelt.json()["message"]


def test_images_and_table_together_are_what_predict_reads(trained, raw, tmp_path):
    patient = next(p for p in sorted(raw.iterdir()) if p.is_dir() and len(list(p.glob("*.nii.gz"))) >= 2)
    model = Served(model_folder(trained[0], tmp_path), "cpu")
    clinical = pd.read_csv(raw / "clinical_data.csv").set_index("patient").loc[patient.name]
    row = {column.name: clinical[column.name] for column in model.models[0].encoder.columns}
    names = {"t1c": "mri_t1ce", "t1ce": "mri_t1ce", "flair": "mri_flair", "t2f": "mri_flair", "pet": "pet"}
    for path in patient.glob("*.nii.gz"):
        key = next(key for key in names if path.name.removesuffix(".nii.gz").endswith(key))
        row[names[key]] = path.read_bytes()
    answer = model.predict(pd.DataFrame([row]))
    shutil.copytree(patient, tmp_path / "in" / "another name")
    clinical.to_frame("another name").T.rename_axis("patient").to_csv(tmp_path / "in" / "clinical_data.csv")
    predict_folder("fusion", [trained[0]], tmp_path / "in", tmp_path / "out.csv", overlays=None, device="cpu", skip=False)
    expected = pd.read_csv(tmp_path / "out.csv")
    assert answer["modalities"][0] == expected["modalities"][0]
    assert np.allclose(answer.filter(like="probability_"), expected.filter(like="probability_"))
    only_table = {column.name: clinical[column.name] for column in model.models[0].encoder.columns}
    last = model.predict(pd.DataFrame([only_table, row])).tail(1)  # a row's place in the request does not matter
    assert np.allclose(answer.filter(like="probability_"), last.filter(like="probability_"), atol=1e-6)

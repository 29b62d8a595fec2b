"""Answers of served models keep who they are about, and the order of the request."""

from importlib import metadata

import pandas as pd
import pytest

from quintet.runs import Record
from quintet.serving.model import requirements
from quintet.serving.requests import REQUESTS, row_name
from quintet.tracking import without_credentials


def test_patients_keep_their_names(tmp_path):
    names = ["007", "7", "1E5", "NA", "row-1"]
    pd.DataFrame({"patient": names, "probability_malignant": 0.5}).to_csv(tmp_path / "out.csv", index=False)
    assert REQUESTS["breakhis"].read([tmp_path / "out.csv"])["patient"].tolist() == names


def test_numbers_of_rows_are_in_the_order_of_the_request(tmp_path):
    numbers = [*range(0, 20_000, 997), 1_000_000]
    names = [row_name(number) for number in numbers]
    assert sorted(names) == names
    pd.DataFrame({"patient": names, "risk": numbers}).to_csv(tmp_path / "out.csv", index=False)
    answer = REQUESTS["fusion"].read([tmp_path / "out.csv"])
    assert list(answer) == ["risk"]
    assert answer["risk"].tolist() == numbers


def test_requirements_name_every_package_with_a_version_that_an_index_has():
    tags = {"version.torch": "2.13.0+cpu"}
    found = dict(line.split("==") for line in requirements(Record("ct", "s", "c", 0, {}, {}, tags=tags)))
    assert found["torch"] == "2.13.0"
    assert found["nibabel"] == metadata.version("nibabel")
    assert {"pydicom", "scikit-image", "psutil", "pandas"} <= found.keys()
    assert not any("+" in version for version in found.values())


@pytest.mark.parametrize("password", ["secret", "se@cret", "a:b@c"])
def test_passwords_are_not_shown(password):
    assert without_credentials(f"http://anna:{password}@host:5000/mlflow") == "http://host:5000/mlflow"
    assert without_credentials("sqlite:////data/a@b/mlflow.db") == "sqlite:////data/a@b/mlflow.db"

"""A trained model and its export, made once for each file."""

import pytest
from exports import receiver_fn, trained


@pytest.fixture(scope="module")
def estimator(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def exported(estimator, tmp_path_factory):
    return estimator.export_saved_model(tmp_path_factory.mktemp("exports"), receiver_fn())

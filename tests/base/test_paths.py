"""What a user may give as a directory, and what is refused."""

import importlib.util
import pathlib

import pytest
from etils import epath

from jaxspec._src.base.files import check_writable, names_in
from jaxspec._src.base.paths import absolute_path, join, split


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("gs://bucket/run", "gs://bucket/run"),
        ("gs://bucket//a/../run/", "gs://bucket/run"),
        ("s3://bucket", "s3://bucket"),
        (epath.Path("gs://bucket/run"), "gs://bucket/run"),
    ],
)
def test_an_address_in_a_bucket_is_kept(given, expected):
    assert absolute_path(given) == expected


def test_a_local_path_becomes_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_path("run") == absolute_path(pathlib.Path("run")) == str(tmp_path / "run")
    assert join(str(tmp_path), "a", "b") == str(tmp_path / "a" / "b")


def test_names_are_joined_and_split_in_a_bucket_as_on_a_disk():
    assert join("gs://bucket/run", "eval", "x") == "gs://bucket/run/eval/x"
    assert split("gs://bucket/run/eval") == ("gs://bucket/run", "eval")


def test_a_path_from_which_pathlib_took_a_slash_is_refused():
    with pytest.raises(ValueError, match="pathlib makes one slash of two. Write the string 'gs://bucket/run', or use"):
        absolute_path(pathlib.Path("gs://bucket/run"))


@pytest.mark.parametrize("given", ["gs://", "gs:///run", "s3://../run", "gs://bucket/run[1]", "gs://bucket/*"])
def test_what_is_no_directory_in_a_bucket_is_refused(given):
    with pytest.raises(
        ValueError, match="is not a directory in a bucket. Expected (gs|s3)://bucket/directory, without"
    ):
        absolute_path(given)


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("gcsfs", "s3fs") else find(name))
    with pytest.raises(ImportError, match=r'needs the package gcsfs, .* Run: pip install "jaxspec\[gcs\]"'):
        absolute_path("gs://bucket/run")
    with pytest.raises(ImportError, match=r'needs the package s3fs, .* Run: pip install "jaxspec\[s3\]"'):
        absolute_path("s3://bucket/run")


def test_a_directory_that_cannot_be_made_is_not_writable(tmp_path):
    check_writable(str(tmp_path / "a" / "b"))
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file"):
        check_writable(str(tmp_path / "file" / "run"))
    assert names_in(str(tmp_path / "file")) == names_in(str(tmp_path / "absent")) == []

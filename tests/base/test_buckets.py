"""What the stores of fsspec answer, and what is made of it."""

import datetime
import types

from jaxspec._src.base import buckets


def test_a_directory_among_the_objects_is_none(monkeypatch):
    file = {"type": "file", "size": 3, "ETag": "e", "LastModified": datetime.datetime(2026, 1, 1)}
    directory = {"type": "directory", "size": 0, "name": "b/run"}

    def find(path, detail, prefix):
        return {"b/run/a": file, "b/run": directory, "b/run/": file}

    monkeypatch.setattr(buckets, "_store", lambda path: types.SimpleNamespace(find=find))
    assert list(buckets.objects_under("s3://b/run")) == ["a"]


def test_an_object_is_no_directory(monkeypatch):
    store = types.SimpleNamespace(find=lambda *args, **kwargs: {"b/run": {"type": "file", "size": 1, "ETag": "x"}})
    monkeypatch.setattr(buckets, "_store", lambda path: store)
    assert not buckets.objects_under("s3://b/run")

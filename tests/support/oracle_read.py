"""Reads recordings of the real TPUEstimator: JSON with encoded arrays, and NumPy archives.

Encoding used in the JSON files:

* a plain number, text, boolean or null: itself
* an array or NumPy scalar: ``{"dtype": "float32", "shape": [2, 3], "data": [flat, C order]}``; entries that
  are not finite are the texts ``"nan"``, ``"inf"``, ``"-inf"``; float32 entries are the shortest decimals
  that read back to the same float32
* a sparse tensor: ``{"sparse": {"indices": array, "values": array, "dense_shape": array}}``
* a lone number that is not finite: ``{"float": "nan"}``
"""

import json

import numpy as np

_NOT_FINITE = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}


def decode(thing):
    """Turns the encoded arrays inside ``thing``, at any depth, into NumPy arrays."""
    if isinstance(thing, list):
        return [decode(item) for item in thing]
    if not isinstance(thing, dict):
        return thing
    if set(thing) == {"float"}:
        return _NOT_FINITE[thing["float"]]
    if set(thing) != {"dtype", "shape", "data"}:
        return {key: decode(value) for key, value in thing.items()}
    if thing["dtype"] == "str":
        return np.array(thing["data"], dtype=object).reshape(thing["shape"])
    numbers = [_NOT_FINITE[item] if isinstance(item, str) else item for item in thing["data"]]
    return np.array(numbers, dtype=thing["dtype"]).reshape(thing["shape"])


def load(path):
    """The document in the JSON file at ``path``, its arrays decoded."""
    with open(path, encoding="utf-8") as file:
        return decode(json.load(file))


def load_arrays(path):
    """The arrays of the NumPy archive at ``path``, by name."""
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files}


def is_sparse(thing):
    """Whether a decoded thing is a sparse tensor."""
    return isinstance(thing, dict) and set(thing) == {"sparse"}


def sparse_to_padded(sparse, pad=-1):
    """[B, L] sparse labels -> dense [B, max_len], filled up with `pad` at the end of each row.

    pad=-1 means the same to precision_at_k and average_precision_at_k, but NOT to recall_at_k: there a
    label of -1 counts as one missed label.  For recall use pad="repeat", which repeats a label of the row
    (labels of a row are a set); rows without any label then have no dense form, and ValueError is raised.
    """
    sp = sparse["sparse"]
    rows = [[] for _ in range(int(sp["dense_shape"][0]))]
    for (row, _), value in zip(sp["indices"], sp["values"], strict=True):
        rows[int(row)].append(int(value))
    if pad == "repeat" and not all(rows):
        raise ValueError("a row without labels cannot repeat one of them")
    width = max([1] + [len(r) for r in rows])
    return np.array([r + [r[0] if pad == "repeat" else pad] * (width - len(r)) for r in rows], np.int64)

"""Reads oracle files.  Needs numpy only, so the JAX side can import it as is.

    import metrics_oracle
    doc = metrics_oracle.load("data/open/metrics.json")
    for case in doc["cases"]: ...

Encoding used in the JSON files
-------------------------------
* plain JSON number / string / bool / null: itself
* array or numpy scalar: {"dtype": "float32", "shape": [2, 3], "data": [..flat, C order..]}
  Non-finite entries are the strings "nan", "inf", "-inf".  float32 entries are
  written with the shortest decimal that reads back to the same float32.
* sparse tensor: {"sparse": {"indices": <array>, "values": <array>, "dense_shape": <array>}}
* non-finite plain number: {"float": "nan"}
"""

import json

import numpy as np

_NONFINITE = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}


def is_array(obj):
    return isinstance(obj, dict) and set(obj) == {"dtype", "shape", "data"}


def is_sparse(obj):
    return isinstance(obj, dict) and set(obj) == {"sparse"}


def decode(obj):
    """Turns encoded arrays inside `obj` (any nesting) into numpy arrays."""
    if is_array(obj):
        if obj["dtype"] == "str":
            return np.array(obj["data"], dtype=object).reshape(obj["shape"])
        data = [_NONFINITE[v] if isinstance(v, str) else v for v in obj["data"]]
        return np.array(data, dtype=obj["dtype"]).reshape(obj["shape"])
    if is_sparse(obj):
        return {"sparse": {k: decode(v) for k, v in obj["sparse"].items()}}
    if isinstance(obj, dict):
        if set(obj) == {"float"}:
            return _NONFINITE[obj["float"]]
        return {k: decode(v) for k, v in obj.items()}
    if isinstance(obj, list):
        return [decode(v) for v in obj]
    return obj


def load(path, raw=False):
    with open(path, encoding="utf-8") as handle:
        doc = json.load(handle)
    return doc if raw else decode(doc)


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

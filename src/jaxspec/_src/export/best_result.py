"""The best result of an evaluation so far, kept in a file beside the exports."""

import json
import logging

import jax
import numpy as np

from jaxspec._src.base.files import read_file, write_file
from jaxspec._src.base.paths import join
from jaxspec._src.base.types import Metrics, PyTree

_logger = logging.getLogger("jaxspec")
_FILE_NAME = "best_eval_result.json"


def read_best_result(export_path: str) -> Metrics | None:
    """The best result so far; None if there is none.

    Raises:
      ValueError: if the file does not hold one.
    """
    path = join(export_path, _FILE_NAME)
    try:
        result = json.loads(read_file(path), object_hook=_decode)
        if not isinstance(result, dict):
            raise ValueError(f"a dict is expected, got {result!r}")
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(
            f"{path} does not hold the best result of BestExporter ({error}). Delete it, and the next evaluation is "
            "the best."
        ) from error
    return result


def write_best_result(export_path: str, result: Metrics) -> None:
    """Writes the best result. The file is complete at any moment. Metrics that JSON cannot hold are left out, with a
    warning."""
    kept = {}
    for name, value in result.items():
        try:
            json.dumps(value, default=_encode)
        except (TypeError, ValueError):
            _logger.warning(
                "BestExporter cannot keep the metric %s, of type %s; compare_fn goes without it.", name, type(value)
            )
        else:
            kept[name] = value
    write_file(join(export_path, _FILE_NAME), json.dumps(kept, default=_encode).encode())


def _encode(value: object) -> PyTree:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray | jax.Array):
        return {"__array__": value.tolist(), "dtype": str(value.dtype)}
    raise TypeError(f"not a number and not an array: {value!r}")


def _decode(value: Metrics) -> Metrics | np.ndarray:
    return np.array(value["__array__"], value["dtype"]) if set(value) == {"__array__", "dtype"} else value

"""Writes an export: one program for each signature, verified on a sample, the weights, and what describes them."""

import datetime
import importlib.metadata
import logging
from collections.abc import Collection, Mapping, Sequence

import jax
import jax.export
import numpy as np

from jaxspec._src.base.callables import describe
from jaxspec._src.base.files import write_file
from jaxspec._src.base.paths import join
from jaxspec._src.base.safetensors_files import check_dtypes, write_arrays
from jaxspec._src.base.types import Array
from jaxspec._src.base.validate import check_number
from jaxspec._src.export import programs
from jaxspec._src.export.directory import write_directory
from jaxspec._src.export.exported_model import ExportedModel
from jaxspec._src.export.sample_run import run_on_sample
from jaxspec._src.export.signature_file import (
    BATCH,
    FORMAT,
    PROGRAMS,
    WEIGHTS_FILE,
    ArrayForm,
    SignatureEntry,
    SignatureFile,
    write_signature_file,
)
from jaxspec._src.export.verification import verify

_logger = logging.getLogger("jaxspec")


def check_batch_sizes(batch_sizes: Collection[int] | None) -> list[int | None]:
    """The sizes of batches to export for, in order; one None: for all."""
    if batch_sizes is None:
        return [None]
    sizes = list(batch_sizes) if isinstance(batch_sizes, Collection) else [batch_sizes]
    for size in sizes or [0]:
        check_number(
            "each of batch_sizes", size, whole=True, above=0, required=True, instead="Write batch_sizes=[1, 8, 64]."
        )
    return [*sorted({int(size) for size in sizes})]


def write_saved_model(
    base: str,
    model: ExportedModel,
    *,
    platforms: Sequence[str],
    batch_sizes: Sequence[int | None],
    assets: Mapping[str, str],
    checkpoint: str,
) -> str:
    """Writes an export into a new directory of `base`, and returns its path.

    Args:
      platforms, batch_sizes, assets: checked.
      checkpoint: what the weights are of, for `signature.json`.
    """
    check_dtypes(model.weights)
    samples = {rows: run_on_sample(model, rows) for rows in batch_sizes}
    made: dict[bytes, str] = {}  # a signature that has two names has one program
    signatures: dict[str, SignatureEntry] = {}
    inputs = _forms(programs.open_shapes(model.inputs, None))
    convention = 0
    for name in next(iter(samples.values())).outputs:
        rowwise = all(sample.rowwise[name] for sample in samples.values())
        if not rowwise:
            _logger.warning(
                "What signature %r returns for a row depends on more than that row: on others of the batch, as with "
                "batch norm in training mode; on its place; or on random numbers. One device computes such a batch as "
                "a whole.",
                name,
            )
        entry: SignatureEntry = {"inputs": inputs, "outputs": {}, "rowwise": rowwise, "programs": []}
        for rows, sample in samples.items():
            exported = _exported(model, name, rows, platforms)
            convention = exported.calling_convention_version
            data = bytes(exported.serialize())
            verify(data, model, sample.inputs, sample.outputs[name], name, platforms)
            for output, form in _output_forms(exported, rows).items():
                # Of one size alone a first dimension may be equal to it by chance.
                if output not in entry["outputs"] or form["shape"][:1] != [BATCH]:
                    entry["outputs"][output] = form
            file = made.setdefault(data, f"{PROGRAMS}/{len(made)}.jax")
            entry["programs"].append({"file": file, "rows": rows})
        signatures[name] = entry
    content: SignatureFile = {
        "format": FORMAT,
        "written_by": {
            "jaxspec": _own_version(),
            "jax": jax.__version__,
            "model_fn": describe(model.model.model_fn),
            "checkpoint": checkpoint,
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        },
        "global_step": model.step,
        "platforms": list(platforms),
        "calling_convention": convention,
        "weights": _forms(model.weights),
        "signatures": signatures,
        "crc32": {},
    }

    def write(directory: str) -> None:
        for data, file in made.items():
            write_file(join(directory, *file.split("/")), data)
        write_arrays(join(directory, WEIGHTS_FILE), {name: np.asarray(x) for name, x in model.weights.items()})
        write_signature_file(directory, content)

    path = write_directory(base, write, assets)
    _logger.info("Exported step %d to %s: %s.", content["global_step"], path, ", ".join(signatures))
    return path


def _exported(model: ExportedModel, name: str, rows: int | None, platforms: Sequence[str]) -> jax.export.Exported:
    run = model.function()

    def one(weights: Mapping[str, Array], inputs: Mapping[str, Array]) -> dict[str, Array]:
        return run(weights, inputs)[name]

    weights = {key: jax.ShapeDtypeStruct(x.shape, x.dtype) for key, x in model.weights.items()}
    return programs.export_program(one, weights, programs.open_shapes(model.inputs, rows), platforms, name)


def _own_version() -> str:
    try:
        return importlib.metadata.version("jaxspec")
    except importlib.metadata.PackageNotFoundError:  # the code is on the path, and not installed
        return "unknown"


def _forms(arrays: Mapping[str, Array | jax.ShapeDtypeStruct]) -> dict[str, ArrayForm]:
    return {name: {"shape": _dimensions(x.shape), "dtype": str(x.dtype)} for name, x in arrays.items()}


def _output_forms(exported: jax.export.Exported, rows: int | None) -> dict[str, ArrayForm]:
    forms = _forms(jax.tree.unflatten(exported.out_tree, exported.out_avals))
    for form in forms.values():
        if rows is not None and form["shape"][:1] == [rows]:
            form["shape"][0] = BATCH
    return forms


def _dimensions(shape: Sequence[object]) -> list[int | str]:
    return [size if isinstance(size, int) else str(size) for size in shape]

"""Writes an export: one program for each signature, verified on a sample, the weights, and what describes them."""

import datetime
import importlib.metadata
import logging
from collections.abc import Collection, Mapping, Sequence

import jax
import jax.export
import numpy as np

from jaxspec._src.base.arrays import describe_leaves
from jaxspec._src.base.callables import describe
from jaxspec._src.base.files import write_file
from jaxspec._src.base.paths import join
from jaxspec._src.base.safetensors_files import check_dtypes, write_arrays
from jaxspec._src.base.types import Array
from jaxspec._src.base.validate import check_number
from jaxspec._src.export import programs
from jaxspec._src.export.directory import write_directory
from jaxspec._src.export.exported_model import ExportedModel
from jaxspec._src.export.platforms import platform_of
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
from jaxspec._src.step.dependence import Dependence

_logger = logging.getLogger("jaxspec")


def check_batch_sizes(batch_sizes: Collection[int] | None) -> list[int | None]:
    """The sizes of batches to export for, in order; one None: for all."""
    if batch_sizes is None:
        return [None]
    sizes = sorted({*batch_sizes} if isinstance(batch_sizes, Collection) else {batch_sizes})
    for size in sizes or [0]:
        check_number("each of batch_sizes", size, whole=True, above=0, instead="Write batch_sizes=[1, 8, 64].")
    return list(sizes)


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
    wanted = {rows: _run_on_sample(model, rows) for rows in batch_sizes}
    made: dict[bytes, str] = {}  # a signature that has two names has one program
    signatures: dict[str, SignatureEntry] = {}
    inputs = _forms(programs.open_shapes(model.inputs, None))
    convention = 0
    for name in next(iter(wanted.values())):
        entry: SignatureEntry = {"inputs": inputs, "outputs": {}, "programs": []}
        for rows, want in wanted.items():
            exported = _exported(model, name, rows, platforms)
            convention = exported.calling_convention_version
            data = bytes(exported.serialize())
            _verify(data, model, rows, want[name], name, platforms)
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


def _run_on_sample(model: ExportedModel, rows: int | None) -> dict[str, dict[str, np.ndarray]]:
    """What predict's function computes on a sample, by signature.

    Raises:
      ValueError: if it does not use one of the inputs.
    """
    arguments = model.weights, programs.sample(model.inputs, rows), model.rng_data
    try:
        program = jax.jit(model.function()).trace(*arguments)
        outputs: dict[str, dict[str, np.ndarray]] = jax.device_get(program.lower().compile()(*arguments))
    except Exception as error:
        error.add_note(
            f"raised when export_saved_model ran model_fn on a sample of what serving_input_receiver_fn describes: "
            f"{describe_leaves(arguments[1])}"
        )
        raise
    values = Dependence(program.jaxpr.jaxpr)
    _, inputs, rng = jax.tree.unflatten(jax.tree.structure(arguments), values.inputs)
    unused = [name for name, value in inputs.items() if not values.reaches_an_output(value)]
    if unused:
        raise ValueError(
            f"receiver_tensors {sorted(unused)} are not used by any signature of {sorted(outputs)}: got "
            f"{describe_leaves(model.inputs)}. Leave them out of receiver_tensors, or let model_fn use them in PREDICT."
        )
    if values.reaches_an_output(rng):
        _logger.warning(
            "model_fn uses `rng` in PREDICT: each call of the export draws the same random numbers. For other ones let "
            "callers pass a seed: receiver_tensors={'seed': export.TensorSpec((None,), jnp.int32), ...}."
        )
    return outputs


def _exported(model: ExportedModel, name: str, rows: int | None, platforms: Sequence[str]) -> jax.export.Exported:
    run = model.function()

    def one(weights: Mapping[str, Array], inputs: Mapping[str, Array]) -> dict[str, Array]:
        return run(weights, inputs)[name]

    weights = {key: jax.ShapeDtypeStruct(x.shape, x.dtype) for key, x in model.weights.items()}
    return programs.export_program(one, weights, programs.open_shapes(model.inputs, rows), platforms, name)


def _verify(
    data: bytes,
    model: ExportedModel,
    rows: int | None,
    want: Mapping[str, np.ndarray],
    name: str,
    platforms: Sequence[str],
) -> None:
    here = platform_of(model.device)
    if here not in platforms:
        _logger.warning("Signature %r is for %s, and is not verified: here is %r.", name, list(platforms), here)
        return
    exported = jax.export.deserialize(bytearray(data))
    got = jax.jit(exported.call)(model.weights, programs.sample(model.inputs, rows))
    programs.check_outputs(got, want, f"signature {name!r}")


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

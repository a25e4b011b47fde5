"""Running an export: without the code of the model, and with no other package than JAX."""

import functools
import os
import types
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import jax
import jax.export
import numpy as np

from jaxspec._src.base.files import read_file
from jaxspec._src.base.paths import absolute_path, join
from jaxspec._src.base.safetensors_files import read_arrays
from jaxspec._src.base.types import Array
from jaxspec._src.export.arguments import checked_arguments, describe_forms
from jaxspec._src.export.platforms import platform_of
from jaxspec._src.export.signature_file import (
    BATCH,
    WEIGHTS_FILE,
    ArrayForm,
    SignatureEntry,
    SignatureFile,
    read_signature_file,
)
from jaxspec._src.spec.export_outputs import DEFAULT_SERVING_SIGNATURE

_Program: TypeAlias = Callable[[Mapping[str, jax.Array], Mapping[str, Array]], dict[str, jax.Array]]


class _Weights:
    """The weights of an export on all of its devices, and the copy on the first one alone."""

    def __init__(self, arrays: Mapping[str, np.ndarray], devices: Sequence[jax.Device]) -> None:
        self.mesh = jax.sharding.Mesh(np.array(devices), (BATCH,))
        self.on_all: dict[str, jax.Array] = jax.device_put(dict(arrays), self.sharding())
        self.on_first = {name: array.addressable_shards[0].data for name, array in self.on_all.items()}

    def sharding(self, *axes: str) -> jax.sharding.NamedSharding:
        """All dimensions whole on each device, but for the first ones, which are split along these axes."""
        return jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec(*axes))

    def sharded(self, exported: jax.export.Exported) -> _Program:
        """The program on each device's part of the batch."""
        specs = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec(BATCH)
        mapped = jax.shard_map(exported.call, mesh=self.mesh, in_specs=specs, out_specs=specs[1], check_vma=False)
        program: _Program = jax.jit(mapped, in_shardings=(self.sharding(), self.sharding(BATCH)))
        return program


class LoadedSignature:
    """One function of an export.

    Attributes:
      name: of the signature.
      inputs: the shape and dtype of each array that it takes, by name.
      outputs: the same of what it returns.
      rowwise: whether what it returns for a row depends on nothing but that row.
      batch_sizes: the only ones that it takes; None: it takes all.
    """

    def __init__(
        self, name: str, entry: SignatureEntry, exported: Mapping[int | None, jax.export.Exported], weights: _Weights
    ) -> None:
        self.name = name
        self.inputs: Mapping[str, ArrayForm] = types.MappingProxyType(entry["inputs"])
        self.outputs: Mapping[str, ArrayForm] = types.MappingProxyType(entry["outputs"])
        self.rowwise = entry["rowwise"]
        self.batch_sizes = sorted(rows for rows in exported if rows is not None) or None
        self._weights = weights
        self._whole: dict[int | None, _Program] = {rows: jax.jit(one.call) for rows, one in exported.items()}
        self._sharded: dict[int | None, _Program] = {}
        # What is not of the batch cannot be put together from its parts.
        of_rows = self.rowwise and all(form["shape"][:1] == [BATCH] for form in self.outputs.values())
        if weights.mesh.size > 1 and of_rows:
            self._sharded = {rows: weights.sharded(one) for rows, one in exported.items()}

    def check(self, /, **arrays: object) -> dict[str, Array]:
        """The arrays in the dtypes of the signature; a ValueError as in a call if they do not fit. Nothing is run."""
        return checked_arguments(self.name, self.inputs, arrays)

    def __call__(self, /, **arrays: object) -> dict[str, jax.Array]:
        """Runs the signature on one batch.

        If the rows of the batch divide among the devices of the export, and the signature is `rowwise`, each computes
        its part of them, as in `predict`; otherwise the first device computes all.

        Args:
          **arrays: by name, `[batch, ...]`, of NumPy or JAX or nested lists, of any batch size. Numbers of the same
            kind are converted to the dtype of the signature, if they are in its range.

        Returns:
          The outputs by name, as arrays of JAX. The call does not wait for them.

        Raises:
          ValueError: for other names, shapes or kinds of numbers.
        """
        checked = self.check(**arrays)
        rows, shards = len(next(iter(checked.values()))), self._weights.mesh.size
        program = _for_rows(self._sharded, rows // shards) if rows % shards == 0 else None
        if program is not None:
            return program(self._weights.on_all, _placed(checked, self._weights.sharding(BATCH)))
        program = _for_rows(self._whole, rows)
        if program is None:
            raise ValueError(
                f"signature {self.name!r} was exported for batches of {self.batch_sizes} rows alone, got {rows}. Pad "
                "the batch, or export it for all sizes: export_saved_model without batch_sizes."
            )
        return program(self._weights.on_first, _placed(checked, self._weights.mesh.devices.flat[0]))

    def __repr__(self) -> str:
        return f"{self.name}({describe_forms(self.inputs)}) -> {describe_forms(self.outputs)}"


class LoadedExport:
    """A model that was exported: its signatures, and the weights on the devices.

    Attributes:
      signatures: functions by name, `serving_default` among them.
      content: what `signature.json` holds: versions, platforms, the global step.
    """

    def __init__(self, content: SignatureFile, signatures: Mapping[str, LoadedSignature]) -> None:
        self.content = content
        self.signatures = types.MappingProxyType(dict(signatures))

    def __call__(self, /, **arrays: object) -> dict[str, jax.Array]:
        """Runs `serving_default` on one batch, see `LoadedSignature`."""
        return self.signatures[DEFAULT_SERVING_SIGNATURE](**arrays)

    def __repr__(self) -> str:
        return f"LoadedExport({', '.join(map(repr, self.signatures.values()))})"


def load(path: str | os.PathLike[str], devices: Sequence[jax.Device] | jax.Device | None = None) -> LoadedExport:
    """Loads an export. The code of the model is not needed, nor are Flax and Optax.

    Args:
      path: what `export_saved_model` returned; local or in a bucket.
      devices: those that calls run on, or one; None: all of this process.

    Raises:
      FileNotFoundError: if there is no export at the path.
      ValueError: if it is damaged; if it was made by a version of JAX, or for a platform, that does not fit.
    """
    directory = absolute_path(path)
    content = read_signature_file(directory)
    chosen = tuple(jax.local_devices()) if devices is None else _checked_devices(devices)
    _check_platform(directory, content, chosen)
    read = functools.cache(lambda file: read_program(directory, file, content))
    programs = {
        name: {program["rows"]: read(program["file"]) for program in entry["programs"]}
        for name, entry in content["signatures"].items()
    }
    weights = _Weights(read_arrays(join(directory, WEIGHTS_FILE)), chosen)
    return LoadedExport(
        content,
        {name: LoadedSignature(name, entry, programs[name], weights) for name, entry in content["signatures"].items()},
    )


def _checked_devices(devices: Sequence[jax.Device] | jax.Device) -> tuple[jax.Device, ...]:
    given = (devices,) if isinstance(devices, jax.Device) else tuple(devices)
    if not given or not all(isinstance(one, jax.Device) for one in given) or len({*given}) < len(given):
        raise ValueError(
            f"devices must be devices of JAX, each of them once, got {devices!r}. Write jax.devices()[:1]."
        )
    return given


def _placed(arrays: Mapping[str, Array], place: jax.Device | jax.sharding.Sharding) -> dict[str, Array]:
    """The arrays at their place. Those of NumPy may stay where they are: a program itself moves them, and faster."""
    alone = jax.process_count() == 1  # otherwise a program does not
    return {name: x if isinstance(x, np.ndarray) and alone else jax.device_put(x, place) for name, x in arrays.items()}


def _for_rows(programs: Mapping[int | None, _Program], rows: int) -> _Program | None:
    return programs.get(rows) or programs.get(None)


def _check_platform(directory: str, content: SignatureFile, devices: Sequence[jax.Device]) -> None:
    platform = platform_of(devices[0])
    if platform not in content["platforms"]:
        raise ValueError(
            f"the export {directory} is for {content['platforms']}, and here is {platform!r}. Export it with "
            f"platforms=(..., {platform!r}), or pass devices= of another platform."
        )


def read_program(directory: str, file: str, content: SignatureFile) -> jax.export.Exported:
    """One program of an export; a ValueError if this version of JAX cannot read it."""
    versions = (
        jax.export.minimum_supported_calling_convention_version,
        jax.export.maximum_supported_calling_convention_version,
    )
    written = content["calling_convention"]
    made_by = content["written_by"].get("jax", "unknown")
    error: Exception | None = None
    if versions[0] <= written <= versions[1]:
        try:
            return jax.export.deserialize(bytearray(read_file(join(directory, file))))
        except Exception as caught:
            error = caught
    raise ValueError(
        f"this JAX ({jax.__version__}) cannot read the program {file} of the export {directory}, which JAX {made_by} "
        f"wrote with version {written} of jax.export's calling convention; here versions {versions[0]} to "
        f"{versions[1]} are supported. JAX reads exports that are up to six months old, and three weeks newer than "
        f"itself. Export the checkpoint again with this JAX, or install jax=={made_by}."
        + (f" ({type(error).__name__}: {error})" if error else "")
    ) from error

"""Reading an export from its directory."""

import functools
import os
from collections.abc import Sequence

import jax
import jax.export
import jax.numpy as jnp

from jaxspec._src.base.files import read_file
from jaxspec._src.base.paths import absolute_path, join
from jaxspec._src.base.safetensors_files import read_arrays
from jaxspec._src.export.loaded import LoadedExport, LoadedSignature, Weights
from jaxspec._src.export.platforms import platform_of
from jaxspec._src.export.signature_file import WEIGHTS_FILE, SignatureFile, read_signature_file


def load(path: str | os.PathLike[str], devices: Sequence[jax.Device] | jax.Device | None = None) -> LoadedExport:
    """Loads an export. The code of the model is not needed, nor are Flax and Optax.

    Args:
      path: what `export_saved_model` returned; local or in a bucket.
      devices: those that calls run on, or one; None: all of this process.

    Raises:
      FileNotFoundError: if there is no export at the path.
      ValueError: if it is damaged; if it was made by a version of JAX, with 64 bits, or for a platform, and that does
        not fit.
    """
    directory = absolute_path(path)
    content = read_signature_file(directory)
    chosen = tuple(jax.local_devices()) if devices is None else _checked_devices(devices)
    _check_platform(directory, content, chosen)
    _check_widths(directory, content)
    read = functools.cache(lambda file: read_program(directory, file, content))
    programs = {
        name: {program["rows"]: read(program["file"]) for program in entry["programs"]}
        for name, entry in content["signatures"].items()
    }
    weights = Weights(read_arrays(join(directory, WEIGHTS_FILE)), chosen)
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


def _check_platform(directory: str, content: SignatureFile, devices: Sequence[jax.Device]) -> None:
    platform = platform_of(devices[0])
    if platform not in content["platforms"]:
        raise ValueError(
            f"the export {directory} is for {content['platforms']}, and here is {platform!r}. Export it with "
            f"platforms=(..., {platform!r}), or pass devices= of another platform."
        )


def _check_widths(directory: str, content: SignatureFile) -> None:
    inputs = [form for entry in content["signatures"].values() for form in entry["inputs"].values()]
    dtypes = {jnp.dtype(form["dtype"]) for form in [*content["weights"].values(), *inputs]}
    wide = sorted(str(dtype) for dtype in dtypes if jax.dtypes.canonicalize_dtype(dtype) != dtype)
    if wide:
        raise ValueError(
            f"the export {directory} was made with jax_enable_x64, and takes or holds {', '.join(wide)}; here it is "
            "off. Write jax.config.update('jax_enable_x64', True) before anything else."
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

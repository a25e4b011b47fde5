"""The platforms of an export, by the names that jax.export gives them."""

from collections.abc import Collection

import jax

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def check_platforms(platforms: Collection[str]) -> tuple[str, ...]:
    """The platforms as a tuple; ValueError for one that jax.export does not know."""
    given = tuple(platforms) if isinstance(platforms, Collection) and not isinstance(platforms, str) else (platforms,)
    unknown = [name for name in given if name not in PLATFORMS]
    if unknown or not given:
        raise ValueError(
            f"platforms={platforms!r}: expected one or more of {', '.join(map(repr, PLATFORMS))}"
            + (f", got {unknown[0]!r}. " if unknown else ". ")
            + "Write platforms=('cpu', 'cuda', 'tpu'); a GPU of NVIDIA is 'cuda', one of AMD 'rocm'."
        )
    return tuple(dict.fromkeys(given))


def platform_of(device: jax.Device) -> str:
    """The platform of a device. JAX calls both kinds of GPU `gpu`, except in exports."""
    if device.platform != "gpu":
        return str(device.platform)
    return "rocm" if "rocm" in device.client.platform_version.lower() else "cuda"

"""JAX's persistent compilation cache: compiled programs on disk, which the next process reads instead of compiling."""

import logging

import jax

_logger = logging.getLogger("jaxspec")
_DIRECTORY = "jax_compilation_cache_dir"
_MIN_COMPILE_SECS = "jax_persistent_cache_min_compile_time_secs"
_JAXS_MIN_COMPILE_SECS = 1.0
"""JAX's default: programs that compile faster are not kept."""


def use_compilation_cache(directory: str) -> None:
    """Makes `directory` the compilation cache of this process, unless JAX has one already: then that one stays.

    JAX has one cache in a process, and it stays when the estimator is gone. Small programs are kept in it, too, unless
    the user has set JAX's threshold.

    Args:
      directory: an absolute path, or an address in a bucket.
    """
    in_use = getattr(jax.config, _DIRECTORY)  # JAX does not declare its options
    if in_use is None:
        jax.config.update(_DIRECTORY, directory)
    elif in_use != directory:
        _logger.warning(
            "RunConfig(compilation_cache_dir=%r) is ignored: a process has one compilation cache, and that of this one "
            "is already %r, set by jax_compilation_cache_dir, JAX_COMPILATION_CACHE_DIR or another estimator. Leave "
            "compilation_cache_dir as None, or name the same directory.",
            *(directory, in_use),
        )
        return
    if getattr(jax.config, _MIN_COMPILE_SECS) == _JAXS_MIN_COMPILE_SECS:
        jax.config.update(_MIN_COMPILE_SECS, 0.0)

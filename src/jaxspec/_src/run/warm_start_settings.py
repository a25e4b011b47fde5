"""What a user says about a warm start, and what a warm start reports."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

from jaxspec._src.spec.namedtuple import checked


@checked()
class WarmStartSettings(NamedTuple):
    """Which stored weights fresh variables take, as in TensorFlow. Names are paths such as `params/Dense_0/kernel`.

    Raises:
      ValueError: without a path; for a regular expression that does not compile.
      TypeError: for names that are no strings.
    """

    ckpt_to_initialize_from: str | os.PathLike[str]
    """A checkpoint, a model_dir (its latest checkpoint is taken), an export, a `.safetensors` file, or a checkpoint of
    TensorFlow."""
    vars_to_warm_start: str | Sequence[str] | None = ".*"
    """The variables to take. A string is a regular expression that the beginning of a name must match; it selects among
    what is trained, the collection `params`. A list of such strings selects among all collections. None selects
    nothing."""
    var_name_to_prev_var_name: Mapping[str, str] | None = None
    """By the name of a variable, its name in the checkpoint, where the two differ."""

    def _checked(self) -> Self:
        path, patterns, renames = self
        if not isinstance(path, str | os.PathLike) or not os.fspath(path):
            raise ValueError(
                f"`ckpt_to_initialize_from` MUST be set in WarmStartSettings, to the path of the weights; got {path!r}."
            )
        given = [patterns] if isinstance(patterns, str) else patterns or []
        if not isinstance(given, list | tuple) or not all(isinstance(pattern, str) for pattern in given):
            raise ValueError(
                "WarmStartSettings: `vars_to_warm_start` must be a regular expression, a list of them, or None; got "
                f"{patterns!r}. Write names of variables, such as ['params/Dense_0/.*']."
            )
        for pattern in given:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"WarmStartSettings: vars_to_warm_start={pattern!r} is no regular expression: {error}. Put a "
                    r"backslash before characters that stand for themselves, as in 'params/w\+b'."
                ) from error
        names = {} if renames is None else renames
        if not isinstance(names, Mapping) or not all(isinstance(name, str) for pair in names.items() for name in pair):
            raise TypeError(
                "WarmStartSettings: `var_name_to_prev_var_name` must be a dict of names in the model to names in the "
                f"checkpoint, such as {{'params/Dense_0/kernel': 'params/old/kernel'}}; got {renames!r}. "
                "It is the third argument: there is no var_name_to_vocab_info before it."
            )
        return self


class WarmStartReport(NamedTuple):
    """What a warm start did with each variable, and with each array of the checkpoint."""

    path: str
    """What was read: of a model_dir its latest checkpoint, of an export the file of weights."""
    matched: dict[str, str]
    """By the name of a variable, the name in the checkpoint of the array that it got."""
    converted: dict[str, str]
    """Those of them whose dtype differs: by name, the two dtypes, such as `float32 to bfloat16`."""
    missing: dict[str, str]
    """Variables that were asked for, and the names that the checkpoint lacks. If there are any, it failed."""
    differing: dict[str, str]
    """Variables whose shape, or kind of number, differs, and both of these. If there are any, it failed."""
    fresh: tuple[str, ...]
    """Variables that were not asked for: they have the values that init_fn gave them."""
    unused: tuple[str, ...]
    """Arrays of the checkpoint that no variable got."""

"""What an assignment map says: which stored array each variable takes, and what converts it."""

from collections.abc import Collection, Mapping

from jaxspec._src.base.name_maps import Converter, Target, are_converters
from jaxspec._src.checkpoint.names_in_messages import listed, similar_names


def check_assignment_map(assignment_map: Mapping[str, Target]) -> None:
    """Raises unless the map is one of names to names, or to converters by name."""
    instead = (
        "Write {'dense/kernel': 'params/Dense_0/kernel'}, {'scope/': 'params/scope/'}, or "
        "{'dense/kernel': {'params/Dense_0/kernel': converter}}."
    )
    if not isinstance(assignment_map, Mapping) or not assignment_map:
        raise TypeError(
            "init_from_checkpoint: assignment_map must be a dict of names in the checkpoint to names of variables, got "
            f"{assignment_map!r}. {instead}"
        )
    for source, target in assignment_map.items():
        if isinstance(target, str) and isinstance(source, str):
            if source.endswith("/") != target.endswith("/"):
                raise ValueError(
                    f"init_from_checkpoint: the assignment map has {source!r}: {target!r}. A scope, with a slash at "
                    f"its end, goes to a scope, and a name to a name. {instead}"
                )
        elif not (isinstance(source, str) and are_converters(target)):
            raise TypeError(f"init_from_checkpoint: the assignment map has {source!r}: {target!r}. {instead}")


def sources_of(
    assignment_map: Mapping[str, Target], variables: Collection[str]
) -> dict[str, tuple[str, Converter | None]]:
    """By the name of each variable that the map names, the name of its source and what converts it."""
    sources: dict[str, tuple[str, Converter | None]] = {}
    for source, target in assignment_map.items():
        pairs = _pairs(source, target, variables)
        unknown = next((name for name in pairs if name not in variables), None if pairs else str(target))
        if unknown is not None:
            raise ValueError(
                f"init_from_checkpoint: the assignment map has {source!r}: {unknown!r}, and there is no variable "
                f"{unknown!r}. Similar names: {similar_names(unknown, variables)}. All names: {listed(variables)}."
            )
        for name, found in pairs.items():
            if name in sources:
                raise ValueError(
                    f"init_from_checkpoint: {name} would get its value from {sources[name][0]!r} and from "
                    f"{found[0]!r}. Let one entry of the assignment map name it."
                )
            sources[name] = found
    return sources


def _pairs(source: str, target: Target, variables: Collection[str]) -> Mapping[str, tuple[str, Converter | None]]:
    """What one entry of the map says, for each variable."""
    if not isinstance(target, str):
        return {name: (source, convert) for name, convert in target.items()}
    if not target.endswith("/"):
        return {target: (source, None)}
    prefix, scope = source.removeprefix("/"), target.removeprefix("/")  # "/" alone is everything
    below = {name: (prefix + name.removeprefix(scope), None) for name in variables if name.startswith(scope)}
    return below or {
        name: (f"{collection}/{prefix}{rest.removeprefix(scope)}", None)
        for name in variables
        for collection, _, rest in [name.partition("/")]
        if rest.startswith(scope)
    }

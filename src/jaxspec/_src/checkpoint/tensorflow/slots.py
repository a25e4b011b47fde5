"""Which arrays of a TensorFlow 1 checkpoint are slots: what an optimizer keeps for each variable that it trains."""

import re
from collections.abc import Collection, Mapping

_OPTIMIZERS = ("Adadelta", "Adagrad", "Adam", "Ftrl", "Momentum", "RMSProp")
"""The names that optimizers have, unless they are given others. Slots are named after them."""
MEAN, MOMENTUM = "RMSProp_1 (the mean)", "RMSProp_1 or RMSProp_2 (the momentum)"
"""The names that `slots_of` gives to two slots of RMSProp. TensorFlow numbers the slots, and has a mean only if RMSProp
is centered; it stores the momentum last, even where it is 0."""


def slots_of(
    stored: Collection[str], variables: Collection[str], optimizer_names: Mapping[str, str]
) -> dict[str, dict[str, list[str]]]:
    """For each variable and slot, the names of arrays that may be it, the most likely one first.

    A slot is called `VARIABLE/Adam`, `VARIABLE/Adam_1`, or `SCOPE/VARIABLE/Adam` if its optimizer was made in a scope.

    Args:
      stored: all names in the checkpoint.
      variables: the names of some variables.
      optimizer_names: TensorFlow's own name of an optimizer, such as Adam, by the name that it was given.

    Raises:
      ValueError: for an optimizer that TensorFlow does not have.
    """
    if unknown := sorted(set(optimizer_names.values()).difference(_OPTIMIZERS)):
        raise ValueError(
            f"optimizer_names leads to {unknown}, expected names from {_OPTIMIZERS}: write {{'MyAdam': 'Adam'}}."
        )
    slots: dict[str, dict[str, list[str]]] = {variable: {} for variable in variables}
    for name in sorted(stored, key=len):
        place, _, slot = name.rpartition("/")
        variable = _variable_of(place, stored, variables)
        if variable is not None:
            slots[variable].setdefault(_usual_name(slot, optimizer_names), []).append(name)
    for found in slots.values():
        last, mean = found.pop("RMSProp_2", None), found.pop("RMSProp_1", None)
        if last and mean:
            found[MEAN] = mean
        if momentum := last or mean:
            found[MOMENTUM] = momentum
    return slots


def _variable_of(place: str, stored: Collection[str], variables: Collection[str]) -> str | None:
    """The variable that an array below `place` belongs to; None if it is none of them."""
    if place in stored:
        return place if place in variables else None
    parts = place.split("/")
    ends = ("/".join(parts[start:]) for start in range(1, len(parts)))
    return next((end for end in ends if end in variables), None)


def _usual_name(slot: str, optimizer_names: Mapping[str, str]) -> str:
    for given, usual in optimizer_names.items():
        if match := re.fullmatch(re.escape(given) + r"(_\d+)?", slot):
            return usual + (match[1] or "")
    return slot

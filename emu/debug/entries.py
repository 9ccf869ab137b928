"""Methods that are called when the guest gets somewhere: `@at(…)` says where, `table` finds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Method = TypeVar("Method", bound=Callable[..., None])


def at(*places: str) -> Callable[[Method], Method]:
    """Mark a method as one for these functions or events of a kernel, by name."""

    def mark(method: Method) -> Method:
        vars(method)["places"] = places
        return method

    return mark


def places(*classes: type) -> list[str]:
    """All places that these classes have methods for, each once."""
    found = [p for c in classes for method in vars(c).values() for p in getattr(method, "places", ())]
    return list(dict.fromkeys(found))


def table(*objects: object) -> dict[str, list[Callable[..., Any]]]:
    """For each place the methods of these objects, in the order of the objects."""
    out: dict[str, list[Callable[..., Any]]] = {}
    for one in objects:
        for name, method in vars(type(one)).items():
            for place in getattr(method, "places", ()):
                out.setdefault(place, []).append(getattr(one, name))
    return out


__all__ = ["at", "places", "table"]

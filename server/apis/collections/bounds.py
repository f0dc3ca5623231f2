"""How much work a schema can be: somebody else's schema must not make the server think for long.

The work is counted in steps, of one schema on one value. References that lead back to themselves on the same value
never end, and a schema that refers to the next twice, that to its next twice, and so on, doubles the steps with each.
Where it does so from a value to the value inside, they grow with the depth of a document.
"""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Any

from ....storage.documents import MAX_DEPTH
from .references import SchemaError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .references import Bundle

MAX_STEPS = 10_000
"""On one value that holds no others."""
_CAP = 10**12
_SAME_ONE = ("not", "if", "then", "else")
_SAME_LIST = ("allOf", "anyOf", "oneOf")
_SAME_NAMED = ("dependentSchemas", "dependencies")
_AGAIN = ("unevaluatedProperties", "unevaluatedItems")
"""With these, the schemas for the same value may be asked once more."""


def steps(bundle: Bundle) -> Sequence[int]:
    """The most steps that each value of a document takes, by how many levels are below its root, from 0 to 128.

    Raises `SchemaError` for references without end, or too many steps.
    """
    if not isinstance(bundle.root, dict):
        return [1] * (MAX_DEPTH + 1)
    nodes = _reachable(bundle)
    same = {key: [id(child) for child in _same(node, bundle.targets)] for key, node in nodes.items()}
    try:
        order = tuple(TopologicalSorter(same).static_order())
    except CycleError:
        raise SchemaError(bundle.file, "", "a $ref leads back to itself without end") from None
    inside = {key: _inside(node) for key, node in nodes.items()}
    costs: dict[int, int] = dict.fromkeys(order, 0)
    found: list[int] = []
    for _ in range(MAX_DEPTH + 1):
        below, costs = costs, {}
        for key in order:
            again = 2 if any(keyword in nodes[key] for keyword in _AGAIN) else 1
            cost = 1 + again * sum([costs[child] for child in same[key]])
            cost += sum([max([below[child] for child in group]) for group in inside[key]])
            costs[key] = min(cost, _CAP)
        found.append(costs[id(bundle.root)])
        if len(found) == 1 and found[0] > MAX_STEPS:
            raise SchemaError(bundle.file, "", f"a single value takes up to {found[0]:,} steps to check")
        if costs == below:
            found += [found[-1]] * (MAX_DEPTH + 1 - len(found))
            break
    return found


def _reachable(bundle: Bundle) -> dict[int, dict[str, Any]]:
    """Every schema that is an object and may be asked, by its `id`."""
    found: dict[int, dict[str, Any]] = {}
    todo: list[Any] = [bundle.root]
    while todo:
        node = todo.pop()
        if isinstance(node, dict) and id(node) not in found:
            found[id(node)] = node
            todo += _same(node, bundle.targets)
            for group in _groups(node):
                todo += group
    return found


def _same(schema: Mapping[str, Any], targets: Mapping[int, Sequence[Any]]) -> Iterator[Any]:
    """The schemas that are asked of the same value."""
    found: list[Any] = [*targets.get(id(schema), ())]
    found += [schema[key] for key in _SAME_ONE if key in schema]
    found += [one for key in _SAME_LIST for one in _list(schema.get(key))]
    found += [one for key in _SAME_NAMED for one in _named(schema.get(key))]
    return (one for one in found if isinstance(one, dict))


def _inside(schema: Mapping[str, Any]) -> list[list[int]]:
    return [[id(one) for one in group] for group in _groups(schema) if group]


def _groups(schema: Mapping[str, Any]) -> Iterator[list[Any]]:
    """The schemas that are asked of the values inside; of each group one, of each value."""
    items = schema.get("items")
    groups: list[list[Any]] = [
        [*_named(schema.get("properties")), schema.get("additionalProperties"), schema.get("propertyNames")],
        [*_list(items), *_list(schema.get("prefixItems")), items, schema.get("additionalItems")],
        *([one] for one in _named(schema.get("patternProperties"))),
        [schema.get("contains")],
        *([schema.get(key)] for key in _AGAIN),
    ]
    return ([one for one in group if isinstance(one, dict)] for group in groups)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _named(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else []

"""Policies that select one migration and of which none counts more: such a migration is refused. Pure."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from vfio_api.models_policy import PolicySpec, VFIOMigrationPolicy
from vfio_cli.fields import Json

Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Rivals:
    """Two policies, and the labels of a namespace and of a migration that both select."""

    names: tuple[str, str]
    namespace: Labels
    migration: Labels


def invalid(policies: Sequence[Json]) -> Iterator[str]:
    """Names of those that do not fit the model, so that the operator passes over them."""
    yield from (str(body["metadata"]["name"]) for body in policies if _spec(body) is None)


def rivals(policies: Sequence[Json]) -> Iterator[Rivals]:
    """Every two that are in conflict, in the order of their names."""
    known = {str(body["metadata"]["name"]): spec for body in policies if (spec := _spec(body)) is not None}
    for one, other in itertools.combinations(sorted(known), 2):
        first, second = known[one], known[other]
        namespace = _both(first.namespace_selector, second.namespace_selector)
        migration = _both(first.migration_selector, second.migration_selector)
        if first.specificity != second.specificity or namespace is None or migration is None:
            continue
        more = (spec for spec in known.values() if spec.specificity > first.specificity)
        if not any(spec.selects(namespace, migration) for spec in more):
            yield Rivals((one, other), namespace, migration)


def _both(one: Labels, other: Labels) -> Labels | None:
    """The fewest labels that both selectors select; None if no labels do."""
    if any(one[key] != other[key] for key in one.keys() & other.keys()):
        return None
    return {**one, **other}


def _spec(body: Json) -> PolicySpec | None:
    try:
        return VFIOMigrationPolicy.model_validate(body).spec
    except ValidationError:
        return None

"""Which policy a migration follows, and what is then resolved. Pure.

As KubeVirt's MigrationPolicies: the most specific one counts, which is the one that names the most labels of the
namespace and of the migration. What the migration says itself counts more, field by field; what nobody says has the
default of `observed.Strategy`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vfio_api.errors import Reason
from vfio_api.models_policy import PolicySpec, VFIOMigrationPolicy
from vfio_api.models_strategy import OnConvergenceTimeout
from vfio_api.models_strategy import Strategy as Said
from vfio_api.quantity import parse_quantity
from vfio_api.types import Failure
from vfio_operator.observed import Strategy

Labels = Mapping[str, str]
_DEFAULT = Strategy()


@dataclass(frozen=True, slots=True)
class Policy:
    """A VFIOMigrationPolicy."""

    name: str
    spec: PolicySpec

    def selects(self, namespace: Labels, migration: Labels) -> bool:
        """Whether it is for a migration with these labels, in a namespace with these."""
        return self.spec.selects(namespace, migration)

    @property
    def specificity(self) -> int:
        """How many labels it names."""
        return self.spec.specificity


def policy_of(body: Mapping[str, object]) -> Policy:
    """From the object as the API server has it. Raises ValidationError."""
    made = VFIOMigrationPolicy.model_validate(body)
    return Policy(made.metadata.name, made.spec)


def choose(policies: Iterable[Policy], namespace: Labels, migration: Labels) -> tuple[Policy | None, Failure | None]:
    """The policy that counts, None if none selects the migration; or that two are as specific as each other."""
    found = sorted((p for p in policies if p.selects(namespace, migration)), key=lambda p: (-p.specificity, p.name))
    if not found:
        return None, None
    rivals = [p.name for p in found if p.specificity == found[0].specificity]
    if len(rivals) > 1:
        return None, Failure(
            Reason.POLICY_CONFLICT,
            f"VFIOMigrationPolicies {' and '.join(rivals)} select this migration by {found[0].specificity} labels "
            "each, and neither is more specific: add a label to one of them, or delete one (kubectl get vfp)",
        )
    return found[0], None


def resolve_strategy(said: Said, policy: Policy | None) -> Strategy:
    """The strategy of a migration."""
    rules = policy.spec.strategy if policy is not None else None
    merged = {name: value for each in (rules, said) if each is not None for name, value in each if value is not None}
    limit = merged.get("bandwidth_limit_bytes_per_second")
    timeout = merged.get("on_convergence_timeout", OnConvergenceTimeout.ABORT)
    return Strategy(
        downtime_limit_milliseconds=merged.get("downtime_limit_milliseconds", _DEFAULT.downtime_limit_milliseconds),
        pre_copy=str(merged.get("pre_copy", _DEFAULT.pre_copy)),
        convergence_timeout_seconds=merged.get("convergence_timeout_seconds", _DEFAULT.convergence_timeout_seconds),
        switch_over_on_timeout=timeout is OnConvergenceTimeout.SWITCHOVER,
        switchover_ack=merged.get("switchover_ack", _DEFAULT.switchover_ack),
        switchover_timeout_seconds=merged.get("switchover_timeout_seconds", _DEFAULT.switchover_timeout_seconds),
        bandwidth_limit_bytes_per_second=parse_quantity(limit) if limit is not None else 0,
    )

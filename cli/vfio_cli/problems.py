"""What a user is told in one line instead of a traceback. Pure."""

import json
from collections.abc import Mapping
from typing import Any

from vfio_api import API_GROUP, API_VERSION

FAILED, USAGE, INTERRUPTED = 1, 2, 130
_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _CONFLICT, _INVALID, _TOO_MANY = 401, 403, 404, 409, 422, 429


class UserError(RuntimeError):
    """Something the user can do something about. Its text is one line: object, what was found, the next step.

    `code` is the exit code; `status` the API server's, 0 if it was not reached or not asked. passing: an API server
    that stops or starts says such things, so who had an answer before may ask again.
    """

    def __init__(
        self, subject: str, found: str, next_step: str, *, code: int = FAILED, status: int = 0, passing: bool = False
    ):
        super().__init__(" ".join(f"{subject}: {found}; {next_step}".split()))
        self.subject, self.found, self.next_step = subject, found, next_step
        self.code, self.status, self.passing = code, status, passing


def wrong(subject: str, found: str, next_step: str = "see kubectl vfio migrate --help") -> UserError:
    """A mistake in how the command was called."""
    return UserError(subject, found, next_step, code=USAGE)


def refused(status: int, reason: str, body: str, subject: str) -> UserError:
    """What an answer of the API server that is no success means for the user. body: a metav1.Status, as it was sent."""
    said = _status(body)
    message = str(said.get("message") or reason or f"status {status}").strip()
    details = said.get("details") or {}
    subject = _made_up(subject, str(details.get("name") or ""))
    if status == _UNAUTHORIZED:
        found = "expected credentials that the API server takes, found ones that it refuses (401)"
        return UserError(subject, found, "log in again, then ask kubectl auth whoami", status=status)
    if status == _FORBIDDEN and "is forbidden: User" in message:
        next_step = "ask an administrator for that right; kubectl vfio doctor lists those that are needed"
        found = f"expected the right to do this, found that {message}"
        return UserError(subject, found, next_step, status=status, passing=True)
    if status == _NOT_FOUND and details.get("kind") == "namespaces":
        found = "expected a namespace of that name, found none"
        return UserError(f"Namespace {details.get('name')}", found, "look at -n: kubectl get ns", status=status)
    if status == _NOT_FOUND and not details.get("name"):
        found = f"expected an API server that serves {API_GROUP}/{API_VERSION}, found one that does not know this kind"
        return UserError(
            subject, found, "install the chart (its CRDs), or correct --context", status=status, passing=True
        )
    if status == _NOT_FOUND:
        next_step = "look at the name and the namespace (-n): kubectl get vfm -A"
        return UserError(subject, "expected an object of that name, found none", next_step, status=status)
    if status == _CONFLICT and said.get("reason") == "AlreadyExists":
        next_step = "choose another name, or delete that one"
        return UserError(subject, "expected a free name, found an object that has it", next_step, status=status)
    if status in (400, _INVALID, _FORBIDDEN):
        found = f"expected what the API server accepts, found: {message}"
        return UserError(subject, found, "correct what is named", status=status)
    found = f"expected an answer, found {status} from the API server: {message}"
    passing = status == _TOO_MANY or status >= 500
    return UserError(subject, found, "try again", status=status, passing=passing)


def _made_up(subject: str, name: str) -> str:
    """The subject with the name that the API server made up for an object that was to begin with `lab/migrate-`."""
    head, slash, prefix = subject.rpartition("/")
    if not prefix.endswith("-"):
        return subject
    return f"{head}{slash}{name if name.startswith(prefix) else f'{prefix}...'}"


def _status(body: str) -> Mapping[str, Any]:
    try:
        found = json.loads(body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def unreachable(server: str, why: str, context: str) -> UserError:
    """Nobody answers at the API server's address."""
    of = f" of context {context}" if context else ""
    found = f"expected an API server that answers, found: {why}"
    next_step = "look at the cluster and the network, or correct --context"
    return UserError(f"API server {server}{of}", found, next_step, passing=True)

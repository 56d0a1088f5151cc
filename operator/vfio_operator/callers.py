"""Who an agent is, by its token alone: when it dials, and again for as long as its stream lives."""

import asyncio
import random
from collections.abc import Callable, Iterable

import grpc
import structlog

from vfio_api.names import AGENT_SERVICE_ACCOUNT
from vfio_operator.kube import API_ERRORS, Caller, OperatorApi, brief

log = structlog.get_logger()
MAX_TOKEN = 16384  # characters
NOBODY_TIMES, NOBODY_SECONDS = 3, 5.0


class RefusedError(Exception):
    """The caller is not let in; with gRPC's code, and why, as it may be told."""

    def __init__(self, code: grpc.StatusCode, why: str):
        super().__init__(why)
        self.code = code


class Callers:
    """Tells agents by TokenReview: for our audience, of the agents' ServiceAccount, bound to a pod on a node."""

    def __init__(self, api: OperatorApi, agent_namespace: str, review_seconds: float):
        self._api, self._review_seconds = api, review_seconds
        self._again = min(NOBODY_SECONDS, review_seconds)
        self._expected = f"system:serviceaccount:{agent_namespace}:{AGENT_SERVICE_ACCOUNT}"

    async def identify(self, metadata: Iterable[tuple[str, str | bytes]]) -> tuple[Caller, str]:
        """Who calls with this metadata, and the token that says so. Raises RefusedError."""
        scheme, _, token = next((str(value) for key, value in metadata if key == "authorization"), "").partition(" ")
        caller = None
        if scheme == "Bearer" and 0 < len(token) < MAX_TOKEN:
            try:
                caller = await self._api.review_token(token)
            except API_ERRORS as error:
                # the error is not for someone who may be anyone
                log.warning("token not reviewed", error=brief(error))
                why = "the API server does not review tokens now; the operator's log says why"
                raise RefusedError(grpc.StatusCode.UNAVAILABLE, why) from None
        if caller is None or caller.username != self._expected:
            who = caller.username if caller else "nobody (the token is not valid for this audience)"
            raise RefusedError(grpc.StatusCode.UNAUTHENTICATED, f"expected a token of {self._expected}, found {who}")
        if not caller.node:
            raise RefusedError(grpc.StatusCode.UNAUTHENTICATED, "the token is not bound to a pod on a node")
        return caller, token

    async def watch(self, known: Caller, token: Callable[[], str]) -> None:
        """Review `token()` again and again; raises PermissionError when it is no longer `known`'s.

        A token is good until its pod or ServiceAccount is gone, and not beyond its time: agents show the next one
        before. It outlives the time that a pod is given to end. Who cannot be asked about is not sent away, and an API
        server that cannot look the pod up says that the token is nobody's: that is believed when it is said thrice.
        """
        nobody = 0
        while True:
            # not all agents' at once: they dialled at the same time
            await asyncio.sleep(self._review_seconds * random.uniform(0.5, 1.0) if not nobody else self._again)  # noqa: S311
            try:
                found = await self._api.review_token(token())
            except API_ERRORS as error:
                log.warning("token not reviewed; the stream goes on", node=known.node, error=brief(error))
                continue
            nobody = nobody + 1 if found is None else 0
            if found != known and nobody in (0, NOBODY_TIMES):
                who = f"{found.username} on node {found.node or '?'}" if found else "nobody"
                raise PermissionError(f"the token of pod {known.pod or '?'} on node {known.node} is now that of {who}")

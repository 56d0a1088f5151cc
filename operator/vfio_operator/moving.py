"""The effects of moving a pod: it is looked for, its counterpart made, and one of the two ended. Decides nothing."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kubernetes.aio.client.exceptions import ApiException

from vfio_api.errors import Reason
from vfio_api.names import HERITAGE_ANNOTATION
from vfio_api.types import Failure, MigrationKey, PauseMethod
from vfio_operator.actions import FindPod, KeepPod, PodAction, ReleasePods, StartTargetPod, SwitchPods
from vfio_operator.counterpart import counterpart, counterpart_name, heritage, is_counterpart, record_of, refusals
from vfio_operator.kube import brief
from vfio_operator.kube_pods import GRACE_SECONDS, KubePods, PodNameTakenError
from vfio_operator.observed import Move, Observed, PodRecord, Shorthand

Body = Mapping[str, Any]
_REFUSED = (400, 403, 422)  # what asking again does not change


class Mover:
    """The pods of one migration. `move` is what is known of them; the watch adds to it by `seen`."""

    def __init__(self, pods: KubePods, key: MigrationKey):
        self._pods, self._key = pods, key
        self._source: Body | None = None  # as it was when it was looked for
        self._moves: PodRecord | None = None  # whom it moves, whatever the watch says of it
        self._adopts = self._switched = False
        self._shown: dict[str, PodRecord | None] = {}  # by UID, as the watch showed it last
        self.move = Move()

    def seen(self, body: Body, *, deleted: bool) -> None:
        """The watch shows a pod of this migration."""
        found = record_of(body)
        self._shown[found.uid] = None if deleted else found
        self._note(found.uid, self._shown[found.uid])

    def _note(self, uid: str, record: PodRecord | None) -> None:
        if self.move.done and not self._switched:
            return  # its marks are taken off, which looks like its end
        if self.move.source is not None and self.move.source.uid == uid:
            self.move = replace(self.move, source=record)
        elif self.move.target is not None and self.move.target.uid == uid and not self._adopts:
            self.move = replace(self.move, target=record)

    def _know(self, move: Move) -> None:
        """What the API server answered, but for what the watch has shown since."""
        self.move = move
        for uid, record in self._shown.items():
            self._note(uid, record)

    def waited(self) -> None:
        """The counterpart has had its time to become ready."""
        self.move = replace(self.move, waited=True)

    def forget(self) -> None:
        """It is to be looked for again."""
        self._source, self.move = None, Move()

    async def carry_out(self, observed: Observed, action: PodAction) -> Failure | None:
        """One action of a plan; what it fails of, if trying again would not help. Errors as of OperatorApi."""
        match action:
            case FindPod() if observed.wish.shorthand is not None:
                await self.find(observed.wish.shorthand, observed.wish.shorthand.target_node)
            case StartTargetPod():
                return await self.start(observed)
            case KeepPod():
                await self.keep()
            case SwitchPods():
                await self.switch(observed)
            case ReleasePods():
                await self.release(observed)
        return None

    async def find(self, wanted: Shorthand, target_node: str) -> None:
        """Ask for the source pod, for what it mounts, and for the target pod if the user made one."""
        body = await self._pods.get(self._key.namespace, wanted.pod)
        refused, target = None, None
        if body is not None:
            # a pod that the user made mounts what it mounts
            claims = () if wanted.target_pod else await self._pods.claims(body)
            refused = next(refusals(body, claims, target_node), None)
        if wanted.target_pod:
            there = await self._pods.get(self._key.namespace, wanted.target_pod)
            target = record_of(there) if there is not None else None
        self._source = body
        source = self._moves = record_of(body) if body is not None else None
        named = counterpart_name(body, self._key) if body is not None and not wanted.target_pod else ""
        made = target is not None and target.migration == self._key.uid
        self._know(Move(True, source, target, named, refused, made))

    async def recall(self, status: Mapping[str, Any], wanted: Shorthand) -> None:
        """What an earlier leader did, by what it wrote down and by what is there."""
        noted, told = (status.get("workload", {}).get(end, {}) for end in ("sourcePod", "targetPod"))
        await self.find(wanted, wanted.target_node)
        if self._moves is not None and self._moves.uid != noted.get("uid"):
            self._moves, self.move = None, replace(self.move, source=None)  # another one of its name
        if wanted.target_pod:
            if "uid" in told and (self.move.target is None or self.move.target.uid != told["uid"]):
                self._know(replace(self.move, made=True, target=None))  # the one that was chosen is gone
        else:
            there = await self._pods.get(self._key.namespace, told["name"]) if told else None
            if there is not None and not is_counterpart(there, self._key):
                there = None  # another has its name
            made = there is not None or "uid" in told
            target = record_of(there) if there is not None else None
            self._know(replace(self.move, counterpart=told.get("name", ""), made=made, target=target))

    async def start(self, observed: Observed) -> Failure | None:
        """Mark both pods, so that the watch shows them; create the counterpart, once, unless the user made it.

        Returns why it cannot be, if so.
        """
        source, wanted, theirs = self._source, observed.wish.shorthand, self.move.target
        if source is None or wanted is None:
            return None
        metadata = source["metadata"]
        if not await self._pods.mark(source, self._key.uid):
            self.move = replace(self.move, source=None)  # it ended before the watch was to show it
            return None
        if wanted.target_pod:
            named = theirs is not None and await self._pods.label(
                theirs.namespace, theirs.name, theirs.uid, self._key.uid
            )
            self._know(replace(self.move, made=True, target=theirs if named else None))
            return None
        try:
            made = await self._pods.create(self._key, counterpart(source, self._key, wanted.target_node))
        except PodNameTakenError as error:
            taken = error.body["metadata"]
            return Failure(
                Reason.TARGET_POD_FAILED,
                f"pod {taken['namespace']}/{taken['name']} is there already and is none of this migration: delete it, "
                "and create the migration again",
            )
        except ApiException as error:
            if error.status not in _REFUSED:
                raise
            return Failure(
                Reason.TARGET_POD_FAILED,
                f"the counterpart of pod {metadata['namespace']}/{metadata['name']} was refused: {brief(error)}",
            )
        self._know(replace(self.move, made=True, target=record_of(made)))
        return None

    async def keep(self) -> None:
        """Take the counterpart out of the migration's hands: it would end with it. Nothing happens if it is gone.

        What it is to have of the source's may have changed since it was made.
        """
        target = self.move.target
        if target is not None:
            there = await self._pods.disown(target.namespace, target.name, target.uid, await self._heritage())
            self._shown.pop(target.uid, None)  # the watch has shown whose it was
            self._know(replace(self.move, target=replace(target, owner="") if there else None))

    async def _heritage(self) -> str | None:
        """What the source leaves to its counterpart, None if it is gone."""
        source = self._moves
        body = await self._pods.get(source.namespace, source.name) if source is not None else None
        same = source is not None and body is not None and body["metadata"]["uid"] == source.uid
        return heritage(body["metadata"]) if body is not None and same else None

    async def switch(self, observed: Observed) -> None:
        """The counterpart gets the source's labels and owner, and the source is deleted. May be repeated.

        A pod of its own is deleted first: what serves until it has ended is the only one that a Service has, until the
        counterpart has its labels. A ReplicaSet would make another pod in that moment, so it gets the counterpart first
        and has two for it: which of them goes is said by what they cost. Only of two that are ready, though: of others
        it ends the one that is not, so a counterpart that is late takes its place when the source has gone.
        """
        target, wanted = self.move.target, observed.wish.shorthand
        source = self.move.source or self._moves  # one that the watch shows no more may have lost our label only
        ours = target if wanted is not None and not wanted.target_pod else None
        left = await self._heritage() if ours is not None else None
        after = source is not None and bool(source.owner) and target is not None and target.ready
        if source is not None and not after:
            await self._delete(observed, source)
        if ours is not None:
            self._adopts = True  # its label is taken off, which looks like its end
            await self._adopt(ours, left)
        if source is not None and after:
            await self._delete(observed, source)
        if ours is not None:
            await self._pods.settle(ours.namespace, ours.name, ours.uid)
        elif target is not None:
            self._adopts = True
            await self._pods.label(target.namespace, target.name, target.uid, None)
        self._switched = True
        self.move = replace(self.move, done=True)

    async def _delete(self, observed: Observed, source: PodRecord) -> None:
        frozen = observed.wish.pausing.method is PauseMethod.FREEZE
        await self._pods.delete(source.namespace, source.name, source.uid, GRACE_SECONDS if frozen else None)

    async def _adopt(self, target: PodRecord, left: str | None) -> None:
        there = await self._pods.get(target.namespace, target.name)
        if there is not None and HERITAGE_ANNOTATION in there["metadata"].get("annotations", {}):
            await self._pods.adopt(there, left)

    async def release(self, observed: Observed) -> None:
        """Delete the counterpart that the operator made, and take the marks from the source. May be repeated."""
        wanted, source = observed.wish.shorthand, self.move.source
        if wanted is not None and not wanted.target_pod:
            await self._delete_counterpart()
        elif (theirs := self.move.target) is not None:
            await self._pods.label(theirs.namespace, theirs.name, theirs.uid, None)
        if source is not None:
            await self._pods.unmark(source.namespace, source.name, source.uid)
        self.move = replace(self.move, done=True)

    async def _delete_counterpart(self) -> None:
        target = self.move.target
        if target is None and self.move.counterpart:  # it may have been created by a request whose answer was lost
            there = await self._pods.get(self._key.namespace, self.move.counterpart)
            target = record_of(there) if there is not None else None
        if target is not None and target.migration == self._key.uid:
            await self._pods.delete(target.namespace, target.name, target.uid, GRACE_SECONDS)

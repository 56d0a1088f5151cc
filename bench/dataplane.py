"""How fast the data streams are: beside openssl or socat with TLS 1.3, and without TLS beside iperf3.

    PYTHONPATH=hack:bench:tests .venv/bin/python bench/dataplane.py

8 GiB of incompressible state over loopback, in one stream and in four. All senders are in one process and the
receiving server in another, as in two agents. A pair of peers has a process at each end of every stream.

TLS: each side reads its state from tmpfs (ours: the same 64 KiB of random bytes again and again; the peer: a file that
is one hole; either comes out of a core's cache, and is as much to encrypt as any) and writes it to /dev/null. The peer
is the faster one of `openssl s_client` to `openssl s_server` and socat to socat, with the settings that suit them best;
both ends use the cipher suite that our streams have. What a peer takes to start and to end is not counted, as our
processes are there already.
Without TLS ("plaintext-equivalent"): our code with a stand-in for the TLS context, which exists here only, sends the
same buffer again and again, as iperf3 does. Several streams of iperf3 are streams of one process, or a process each,
whatever is faster (before 3.16 one process has one thread). Its option -Z is left out: sendfile needs a source that is
a file, and what a device gives can only be read.

A ratio is the median of the rounds' ratios: what is compared was measured one after the other.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial

import measure
from dataplane_ours import ours, suite
from dataplane_peers import Peers
from dataplane_run import GIB, Run
from measure import Json, Result

NAME = "dataplane"
TOTAL_BYTES = 8 * GIB
STREAMS = (1, 4)
ROUNDS = 5
NOTHING_BYTES = 4096  # per stream: what a transfer of these takes is the peer's start and end
LEAST_SPEED, MOST_CPU, MOST_GROWTH_MIB = 0.9, 1.2, 96


@dataclass(frozen=True)
class Contest:
    """Our streams and the peer's, round after round in turn. peer: which program with which options."""

    name: str
    peer: str
    ours: list[Run]
    theirs: list[Run]

    def results(self) -> list[Result]:
        """The ratios with their bars, and what they are made of."""
        return [
            *self._compared("throughput", "GiB/s", lambda run: run.gib_per_second, at_least=LEAST_SPEED),
            *self._compared("cpu", "s/GiB", lambda run: run.cpu_per_gib, at_most=MOST_CPU),
            *(self._growth(at, end) for at, end in enumerate(("source", "target"))),
        ]

    def _compared(self, what: str, unit: str, figure: Callable[[Run], float], **bar: float) -> list[Result]:
        ours, theirs = [figure(run) for run in self.ours], [figure(run) for run in self.theirs]
        ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
        name = f"{NAME}/{self.name}/{what}"
        return [
            measure.result(name, measure.p50(ratios), "x peer", peer=self.peer, samples=ratios, **bar),
            measure.result(f"{name}/ours", measure.p50(ours), unit, samples=ours),
            measure.result(f"{name}/peer", measure.p50(theirs), unit, peer=self.peer, samples=theirs),
        ]

    def _growth(self, at: int, end: str) -> Result:
        most = max(run.growth_mib[at] for run in self.ours)
        name = f"{NAME}/{self.name}/memory-growth/{end}"
        return measure.result(name, most, "MiB at most", at_most=MOST_GROWTH_MIB)

    def raw(self) -> Json:
        """Every round."""
        return {
            "peer": self.peer,
            "ours": [asdict(run) for run in self.ours],
            "theirs": [asdict(run) for run in self.theirs],
        }


Measured = Callable[[int, int], Run]  # of so many streams and bytes


def candidates(peers: Peers, tls: bool, streams: int) -> dict[str, Measured]:
    """What may be the peer. The options are those that could make it faster."""
    if not tls:
        lengths, together = ("128K", "1M"), {1: (True,)}.get(streams, (True, False))
        return {
            f"iperf3 -l {length}" + ("" if one else f", {streams} processes"): partial(
                peers.iperf3, ("-l", length), one_process=one
            )
            for length in lengths
            for one in together
        }
    return {
        "openssl s_client": partial(peers.openssl, ()),
        "openssl s_client, reading ahead": partial(peers.openssl, ("-max_pipelines", "2", "-read_buf", "262144")),
        **{f"socat -b {room}": partial(peers.socat, ("-b", f"{room}")) for room in (16384, 65536, 1 << 20)},
    }


def contest(peers: Peers, tls: bool, streams: int) -> Contest:
    """Find the fastest peer, then measure in turn."""
    name = f"{'tls' if tls else 'plain'}/{streams}-stream{'s' if streams > 1 else ''}"
    found = {peer: _speed(run, streams) for peer, run in candidates(peers, tls, streams).items()}
    print(f"{name}: " + ", ".join(f"{peer} {speed:.2f} GiB/s" for peer, speed in found.items()), flush=True)
    best = max(found, key=lambda peer: found[peer])
    rival = candidates(peers, tls, streams)[best]
    start = _start(rival, streams, ROUNDS)
    rounds = [(ours(streams, tls, TOTAL_BYTES), rival(streams, TOTAL_BYTES).without(start)) for _ in range(ROUNDS)]
    return Contest(name, best, [mine for mine, _ in rounds], [other for _, other in rounds])


def _start(rival: Measured, streams: int, count: int) -> Run:
    """What a peer takes to start and to end: the median of so many transfers of next to nothing."""
    starts = [rival(streams, streams * NOTHING_BYTES) for _ in range(count)]
    return Run(measure.p50([run.seconds for run in starts]), measure.p50([run.cpu_seconds for run in starts]), 0)


def _speed(rival: Measured, streams: int) -> float:
    """GiB/s, to choose among peers."""
    start = _start(rival, streams, 3)
    return max(rival(streams, TOTAL_BYTES // 4).without(start).gib_per_second for _ in range(2))


def bench() -> None:
    """Measure all, print a table and keep the figures."""
    results: list[Result] = []
    raw: Json = {"bytes": TOTAL_BYTES, "cipher": suite()}
    print(f"8 GiB each, loopback, TLS with {raw['cipher']}")
    with ExitStack() as stack:
        peers = Peers(stack, raw["cipher"])
        for tls in (True, False):
            for streams in STREAMS:
                done = measure.undisturbed(partial(contest, peers, tls, streams), f"{NAME}, {streams} streams")
                for each in done.results():
                    print(f"{each.name:44} {each.figure:8} {each.unit:7} {each.bar:8} {_verdict(each)}", flush=True)
                results += done.results()
                raw[done.name] = done.raw()
    measure.save(NAME, results, raw)


def _verdict(of: Result) -> str:
    return "" if of.holds is None else "pass" if of.holds else "falls short"


if __name__ == "__main__":
    bench()

"""`kubectl get --watch` of one object, as Python sees it."""

import json
import queue
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from typing import IO, Any

from devtools.plane import KubectlError
from devtools.tools import kubectl

Json = dict[str, Any]


def documents(stream: IO[str]) -> Iterator[Json]:
    """JSON documents that follow each other, each as soon as it is complete; kubectl indents them."""
    text = ""
    for line in stream:
        text += line
        if line.rstrip("\n") == "}":  # only the end of a document is not indented
            yield json.loads(text)
            text = ""


def watch(resource: str, name: str, namespace: str, environment: Mapping[str, str], timeout: float) -> Iterator[Json]:
    """The object now and after every change, for as long as the caller wants to see more.

    Raises:
        KubectlError: kubectl ended.
        TimeoutError: the caller has not left after `timeout` seconds.
    """
    arguments = ["get", resource, name, "--namespace", namespace, "--watch", "--output", "json"]
    process = subprocess.Popen(
        [kubectl(), *arguments], env=dict(environment), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    found: queue.Queue[Json | None] = queue.Queue()
    reader = threading.Thread(target=_read, args=(process.stdout, found), daemon=True)
    reader.start()
    deadline = time.monotonic() + timeout
    try:
        while True:
            try:
                document = found.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise TimeoutError(f"{resource} {name} is not finished after {timeout:g} s") from None
            if document is None:
                raise KubectlError(f"kubectl {' '.join(arguments)} ended: {process.stderr.read().strip()}")
            yield document
    finally:
        process.terminate()
        process.wait()
        reader.join()
        process.stdout.close()
        process.stderr.close()


def _read(stream: IO[str], found: "queue.Queue[Json | None]") -> None:
    try:
        for document in documents(stream):
            found.put(document)
    finally:
        found.put(None)

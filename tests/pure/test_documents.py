"""What is generated is current, what the documents point at is there, and every word that is said is documented."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

import pytest

from vfio_api.errors import Reason
from vfio_api.models_common import ConditionStatus
from vfio_api.models_status import ConditionType, Phase
from vfio_api.reasons import ConditionReason, EventReason, Word
from vfio_operator.publish import ANNOUNCED

ROOT = Path(__file__).resolve().parents[2]
OPERATOR = ROOT / "operator" / "vfio_operator"


@pytest.mark.parametrize("name", ["states", "reference", "metrics"])
def test_a_drawn_document_is_that_of_the_tables(name: str) -> None:
    drawn = subprocess.run(
        [sys.executable, ROOT / f"hack/draw_{name}.py", "--stdout"], capture_output=True, text=True, check=True
    ).stdout
    assert drawn == (ROOT / f"docs/{name}.md").read_text(), "run `make generate`"


def test_the_dashboards_in_the_chart_are_those_that_are_declared(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "hack/draw_dashboards.py", tmp_path], check=True)
    there, drawn = (
        {path.name: path.read_text() for path in folder.iterdir()}
        for folder in (ROOT / "charts/vfio-migration/dashboards", tmp_path)
    )
    assert there == drawn, "run `make generate`"


def test_the_pictures_are_drawn_from_the_tables(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "hack/draw_pictures.py", tmp_path], check=True)
    there, drawn = (
        {path.name: path.read_text() for path in folder.iterdir()} for folder in (ROOT / "docs/drawings", tmp_path)
    )
    assert there == drawn, "run `make generate`"


def test_links_between_documents_lead_somewhere() -> None:
    for document in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} points at {target}"


# the words of conditions and Events

WORDS: tuple[type[Word], ...] = (Reason, ConditionReason, EventReason, ConditionType)
CAMEL_CASE = re.compile("[A-Z][A-Za-z0-9]+")


@pytest.mark.parametrize("word", [word for enum in WORDS for word in enum], ids=repr)
def test_a_word_has_a_meaning_and_a_next_step(word: Word) -> None:
    assert CAMEL_CASE.fullmatch(word)
    for sentence in (word.meaning, word.next_step):
        assert re.fullmatch(r"\S.{4,}\.", sentence), f"{word} needs one sentence: {sentence!r}"


def test_a_word_is_its_value() -> None:
    """It travels over the wire, and into status, as a plain string."""
    assert Reason("StreamBroken") is Reason.STREAM_BROKEN
    assert f"{Reason.STREAM_BROKEN}" == Reason.STREAM_BROKEN.value == "StreamBroken"
    for enum in WORDS:
        assert len({word.value for word in enum}) == len(enum.__members__), f"{enum.__name__} says a word twice"


def test_every_phase_is_a_documented_reason() -> None:
    """The condition Finished has the phase for its reason."""
    assert {phase.value for phase in Phase} <= {word.value for word in ConditionReason}


def constants(node: ast.AST) -> Iterator[str]:
    """Every string below a node that is one CamelCase word."""
    for child in ast.walk(node):
        if isinstance(child, ast.Constant) and isinstance(child.value, str) and CAMEL_CASE.fullmatch(child.value):
            yield child.value


def steps() -> set[str]:
    """The names of the steps of a plan."""
    found: set[str] = set()
    for path in OPERATOR.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("Step", "Plan"):
                found |= set(constants(node.args[0])) if node.args else set()
    return found


def strangers(source: str) -> set[str]:
    """CamelCase words of a module that speaks to people, which no enum and no table has."""
    enums: tuple[type[StrEnum], ...] = (*WORDS, Phase, ConditionStatus)
    known = {word.value for enum in enums for word in enum} | steps()
    return set(constants(ast.parse(source))) - known


def misnamed(source: str) -> set[str]:
    """What a module gives as the reason of a condition ("reason": ...) or of an Event (event(key, ...)), unknown."""
    enums: tuple[type[Word], ...] = (Reason, ConditionReason, EventReason)
    known = {word.value for enum in enums for word in enum}
    said: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "reason":
                    said |= set(constants(value))
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("event", "_event")
        ):
            said |= {word for argument in node.args for word in constants(argument)}
    return said - known


SPEAKERS = sorted(
    path
    for path in OPERATOR.glob("*.py")
    if path.name in ("publish.py", "status.py") or re.search("import .*(Event|Condition)Reason", path.read_text())
)


@pytest.mark.parametrize("path", SPEAKERS, ids=lambda path: path.name)
def test_the_operator_speaks_to_people_in_documented_words_only(path: Path) -> None:
    assert strangers(path.read_text()) == set()


@pytest.mark.parametrize("path", sorted(OPERATOR.glob("*.py")), ids=lambda path: path.name)
def test_no_condition_and_no_event_has_another_reason(path: Path) -> None:
    assert misnamed(path.read_text()) == set()


def test_what_is_announced_is_documented() -> None:
    for reason, _ in ANNOUNCED.values():
        assert EventReason(reason).meaning


def test_mutant_a_word_of_its_own_is_found() -> None:
    assert strangers('MADE = ("False", "NotReached", "Whatever")') == {"Whatever"}
    assert misnamed('api.event(key, "Whatever", "message")') == {"Whatever"}
    assert misnamed('made = {"type": kind, "reason": "Whatever"}') == {"Whatever"}

"""Mutants are planted where they are meant to be, are strangers to the healthy kernels, and leave nothing behind."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flashverify.adapters.triton import PACKAGE, TritonKernel
from flashverify.kernels import load
from flashverify.mutants.catalogue import MUTANTS
from flashverify.mutants.mutant import Edit, Mutant, plant

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
HEALTHY = Path(importlib.util.find_spec(PACKAGE).origin).parent


def files(folder):
    return {path.name: path.read_text() for path in folder.glob("*.py")}


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=lambda mutant: mutant.name)
def test_every_mutant_is_the_healthy_package_but_for_its_edits(mutant, tmp_path):
    package = plant(mutant, tmp_path)
    planted = {name: text.replace(package, PACKAGE) for name, text in files(tmp_path / package).items()}
    healthy = files(HEALTHY)
    edited = {edit.file for edit in mutant.edits}
    assert edited
    assert planted.keys() == healthy.keys()
    assert {name for name in healthy if planted[name] != healthy[name]} == edited
    for edit in mutant.edits:
        assert edit.new in planted[edit.file]
        assert edit.new != edit.old


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=lambda mutant: mutant.name)
def test_no_import_of_a_mutant_leads_to_the_healthy_package(mutant, tmp_path):
    package = plant(mutant, tmp_path)
    for name, text in files(tmp_path / package).items():
        assert not re.findall(rf"^\s*(?:from|import) {PACKAGE}\b(?!_mutant)", text, re.MULTILINE), name
        compile(text, name, "exec")


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=lambda mutant: mutant.name)
def test_catalogue_entries_tell_their_story_and_source(mutant):
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", mutant.name)
    assert mutant.story.endswith(".")
    assert mutant.source == "control" or re.fullmatch(r"[\w.-]+/[\w.-]+#\d+", mutant.source)


def mutant_of(*edits):
    return Mutant("made-up", "Nothing is wrong.", "control", edits)


@pytest.mark.parametrize(("old", "count"), [("no such text", 0), ("    return ", None), ("", None)])
def test_an_edit_whose_text_does_not_stand_exactly_once_is_refused(old, count, tmp_path):
    found = (HEALTHY / "forward.py").read_text().count(old)
    assert found != 1
    assert count is None or found == count
    with pytest.raises(ValueError, match=rf"mutant made-up: forward.py holds {found} times, not once: {re.escape(repr(old))}"):
        plant(mutant_of(Edit("forward.py", old, "x")), tmp_path)


def test_an_edit_that_begins_within_the_spaces_of_a_line_is_refused(tmp_path):
    """What is planted behind it would stand in another block than it seems to."""
    deeper = (HEALTHY / "dkdv.py").read_text().splitlines(keepends=True)
    line = next(line for line in deeper if line.startswith("            dk = "))
    mutant = Mutant("shallow", "", "control", (Edit("dkdv.py", line[4:], line[4:]),))
    with pytest.raises(ValueError, match=r"shallow: dkdv\.py holds deeper in a line: '        dk = "):
        plant(mutant, tmp_path)


def test_an_edit_of_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"sideways\.py"):
        plant(mutant_of(Edit("sideways.py", "a", "b")), tmp_path)


def test_edits_of_one_file_add_up(tmp_path):
    package = plant(
        mutant_of(Edit("launch.py", "import torch\n", "import torch  # one\n# two\n"), Edit("launch.py", "# two", "# 2")),
        tmp_path,
    )
    assert "import torch  # one\n# 2\n" in (tmp_path / package / "launch.py").read_text()


def test_a_mutant_has_operators_and_modules_of_its_own():
    healthy, mutant = TritonKernel(CPU), load("mutant:lse-in-base-2", CPU)
    assert mutant.name == "mutant:lse-in-base-2"
    assert mutant.sources != healthy.sources
    mine, theirs = mutant._operators.attention, healthy._operators.attention
    assert mine._qualname != theirs._qualname
    assert mine._qualname.partition("::")[0].startswith(f"{PACKAGE}_mutant_")
    packages = {name.partition(".")[0] for name in sys.modules if name.startswith(PACKAGE)}
    for name in [name for name in sys.modules if name.startswith(f"{PACKAGE}_mutant_")]:
        for value in vars(sys.modules[name]).values():
            home = getattr(value, "__module__", None) or ""
            if home.partition(".")[0] in packages:
                assert home.partition(".")[0] == name.partition(".")[0]


def test_a_mutant_is_planted_once_a_process():
    first, second = load("mutant:lse-in-base-2", CPU), load("mutant:lse-in-base-2", CPU)
    assert first.sources == second.sources


def test_an_unknown_mutant_is_an_error_that_names_those_known():
    with pytest.raises(ValueError, match="mutant: got 'radioactive', accepted are scale-off-by-1-percent, "):
        load("mutant:radioactive", CPU)


def test_folders_go_when_the_process_ends(tmp_path):
    program = (
        "import torch; from flashverify.kernels import load; print(load('mutant:delta-missing', torch.device('cpu')).sources)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"TMPDIR": str(tmp_path), "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout.strip()).is_relative_to(tmp_path)
    assert list(tmp_path.iterdir()) == []

"""The tests themselves: each folder mirrors a package, nothing hides behind a tolerance or a skip, files stay short."""

import ast
import re
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
SOURCES = sorted(ROOT.glob("flashverify/**/*.py"))
TEST_FILES = sorted(TESTS.glob("**/*.py"))

LONGEST, MEDIAN = 600, 200

WITHOUT_PACKAGE = {"meta": "tests of the tests", "kernels": "mirrors kernels/flashverify_kernels"}
UNTESTED_FOLDERS = {"console": "what it prints is seen through tests/test_cli.py"}

MACHINE_EPSILONS = 16
"""A literal tolerance says that a test's own float64 arithmetic rounds, and no more: so many roundoffs."""

ALLOWED_TOLERANCES = {
    "cases/test_designed_regimes.py": (1, "a float64 softmax with one weight of 1, many roundings"),
    "cases/test_random_regimes.py": (4, "moments of a seeded sample: sampling error, not rounding"),
    "numerics/test_conditioning.py": (1, "the same float64 sums in another order, of no more than a few hundred terms"),
    "numerics/test_hard.py": (3, "the same float64 sums in another order; expm1 against its argument's formula"),
}
"""Files with literal tolerances: how many, and why they are no budget of a kernel."""

SKIPS = re.compile(r"no GPU: |^needs ")
"""The closed list of reasons to skip: how they begin."""


def packages(folder):
    return {path.parent.name for path in folder.glob("*/__init__.py")}


def test_every_test_folder_mirrors_a_package_and_every_package_has_one():
    folders = {path.name for path in TESTS.iterdir() if path.is_dir() and list(path.glob("test_*.py"))}
    mirrored = packages(ROOT / "flashverify") - UNTESTED_FOLDERS.keys()
    assert folders == mirrored | WITHOUT_PACKAGE.keys()
    assert UNTESTED_FOLDERS.keys() <= packages(ROOT / "flashverify")


def calls(source):
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]


def loose_tolerances(source):
    """Literal tolerances larger than roundoff, and approximations that use the library's default of 1e-6."""
    found = []
    for call in calls(source):
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        for name in ("atol", "rtol", "abs", "rel", "abs_tol", "rel_tol"):
            value = given.get(name)
            if isinstance(value, ast.Constant) and isinstance(value.value, float) and value.value > MACHINE_EPSILONS * 2.0**-52:
                found.append(f"{call.lineno}: {name}={value.value}")
        function = ast.unparse(call.func)
        needed = {"pytest.approx": {"rel", "abs"}, "math.isclose": {"rel_tol", "abs_tol"}}.get(function, set())
        if re.fullmatch(r"(torch\.(testing\.assert_close|allclose|isclose)|np\.(allclose|isclose))", function):
            needed = {"atol", "rtol"}
        if needed and not needed & given.keys():
            found.append(f"{call.lineno}: {function} with its default tolerance")
    return found


@pytest.mark.parametrize("path", TEST_FILES, ids=lambda path: str(path.relative_to(TESTS)))
def test_no_literal_tolerance_larger_than_roundoff(path):
    allowed, _ = ALLOWED_TOLERANCES.get(str(path.relative_to(TESTS)), (0, ""))
    found = loose_tolerances(path.read_text())
    assert len(found) == allowed, found  # fewer than allowed: tighten the list


def test_the_list_of_allowed_tolerances_is_not_stale():
    assert {TESTS / name for name in ALLOWED_TOLERANCES} <= set(TEST_FILES)


@pytest.mark.parametrize(
    ("source", "loose"),
    [
        ("torch.allclose(a, b, rtol=1e-3)", 1),
        ("torch.testing.assert_close(a, b)", 1),
        ("x == pytest.approx(y)", 1),
        ("x == pytest.approx(y, rel=1e-15)", 0),
        ("x == pytest.approx(y, rel=5 * budget)", 0),
        ("torch.allclose(a, b, rtol=0, atol=bound)", 0),
        ("math.isclose(a, b, abs_tol=0.5)", 1),
    ],
)
def test_loose_tolerances_are_seen(source, loose):
    assert len(loose_tolerances(source)) == loose


def skips_without_reason(source):
    found = []
    for call in calls(source):
        function = ast.unparse(call.func)
        if not re.fullmatch(r"pytest\.(mark\.)?(skip|skipif|xfail|importorskip)", function):
            continue
        named = {keyword.arg: keyword.value for keyword in call.keywords}.get("reason")
        reason = named or (call.args[0] if function == "pytest.skip" and call.args else None)
        words = "" if reason is None else ast.unparse(reason).strip("'\"(f")
        if not SKIPS.search(words):
            found.append(f"{call.lineno}: {function}: {words or 'no reason'}")
    return found


@pytest.mark.parametrize("path", TEST_FILES, ids=lambda path: str(path.relative_to(TESTS)))
def test_every_skip_has_a_reason_from_the_list(path):
    source = path.read_text()
    assert skips_without_reason(source) == []
    bare = [line for line in source.splitlines() if re.match(r"\s*@pytest\.mark\.(skip|xfail)\s*$", line)]
    assert bare == []


def test_skips_without_reason_are_seen():
    assert len(skips_without_reason("pytest.skip()")) == 1
    assert len(skips_without_reason("pytest.mark.xfail(reason='flaky')")) == 1
    assert skips_without_reason("pytest.mark.skip(reason='no GPU: none on this machine')") == []


@pytest.mark.parametrize("path", TEST_FILES, ids=lambda path: str(path.relative_to(TESTS)))
def test_every_test_file_says_what_it_is_about_and_asserts(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "no docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            body = ast.unparse(node)
            assert re.search(r"\b(assert|raises|opcheck|_?(assert|check|expect|require)\w*\()", body), (
                f"{node.name} asserts nothing"
            )


def test_files_are_short():
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in SOURCES}
    assert len(lengths) > 50
    assert {path: length for path, length in lengths.items() if length > LONGEST} == {}
    assert statistics.median(lengths.values()) < MEDIAN

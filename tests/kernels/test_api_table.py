"""The table of arguments is current, complete, and names tests that there are."""

from __future__ import annotations

import ast
from pathlib import Path

import flashverify_kernels

from tests.kernels.api_table import GENERATED, TESTS, TESTS_OF_PACKED, TESTS_OF_THE_CACHE, page, rows

HERE = Path(__file__).parent
PUBLISHED = HERE.parents[1] / "docs" / "api-table.md"


def test_the_page_is_current() -> None:
    assert PUBLISHED.read_text() == page()


def test_every_public_function_is_in_it() -> None:
    public = {name for name in flashverify_kernels.__all__ if name[0].islower()}
    assert public == set(GENERATED)


def test_tests_exist_and_arguments_do() -> None:
    named = {test for *_, test in rows()} | set(GENERATED.values())
    for file in {test.partition("::")[0] for test in named}:
        tree = ast.parse((HERE / file).read_text())
        defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert {test.partition("::")[2] for test in named if test.startswith(f"{file}::")} <= defined
    arguments = {argument for _, argument, _, _ in rows()}
    assert set(TESTS) | set(TESTS_OF_PACKED) | set(TESTS_OF_THE_CACHE) <= arguments

"""Every call in the kernels and the fused layer that gives a tensor another shape or order says so in a comment.

The comment stands at the end of the line: ``# [N, C, H, W] -> [N H W, C]``.
"""

import ast
import re
from pathlib import Path

import pytest

import hitdet_nni

PACKAGE = Path(hitdet_nni.__file__).parent
FOLDERS = ("kernels", "nas/fused")
METHODS = {"reshape", "view", "permute", "transpose", "flatten", "unflatten", "movedim"}
COMMENT = re.compile(r"  # .*\[[^\]]+\] -> \[[^\]]+\]")


def uncommented(source):
    """Lines of a module that call one of the methods without the comment."""
    lines = source.splitlines()
    called = {
        node.func.end_lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in METHODS
    }
    return [lines[number - 1].strip() for number in sorted(called) if not COMMENT.search(lines[number - 1])]


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_change_of_shape_has_its_comment(folder):
    modules = sorted((PACKAGE / folder).rglob("*.py"))
    assert len(modules) > 10
    assert {module.name: found for module in modules if (found := uncommented(module.read_text()))} == {}


def test_a_missing_comment_is_found():
    assert uncommented("y = x.view(-1)  # [2, 3] -> [6]\nz = y.permute(0)\n") == ["z = y.permute(0)"]
    assert uncommented("y = x.reshape(-1)  # flat\n") == ["y = x.reshape(-1)  # flat"]

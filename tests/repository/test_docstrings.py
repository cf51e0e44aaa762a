"""What a docstring of hitdet_nni has to say. The rules, for every public module, class, function and method:

1. It has a docstring.
2. Where the docstring has `Args:`, that section names every parameter, in the order of the signature. A class's is
   about the parameters of its `__init__`, or about its fields; a class that has neither takes its parent's.
3. A function that raises an exception with a message, and does not catch it, has a `Raises:` section that names it or
   a class above it. What a class's `__init__` raises is said by the class.
4. A function whose annotations name `Tensor` says something of shapes: one in brackets or parentheses, the word shape
   or scalar, or the name of the function or class that does. `forward` may leave that to its class.

Public is what has no leading underscore, nor anything around it. What functions define inside is their own affair. The
files are read, not imported.
"""

import ast
import builtins
import re
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[2] / "hitdet_nni"
SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises|Shape|Source):$", re.MULTILINE)
ABOVE = {"InputError": "ValueError", "NonFiniteLossError": "RuntimeError"}
"""The base of each exception that is raised by name and is not Python's."""

INSIDE = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)


class Definition(NamedTuple):
    """A public module, class or function, and the class that it stands in."""

    name: str
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    parent: ast.ClassDef | None


def public(node, name, parent=None):
    """A node and all that is public in it."""
    yield Definition(name, node, parent)
    for child in node.body:
        is_class = isinstance(child, ast.ClassDef)
        if (is_class or isinstance(child, ast.FunctionDef)) and not child.name.startswith("_"):
            below = public(child, f"{name}.{child.name}", node if isinstance(node, ast.ClassDef) else None)
            yield from below if is_class else [next(below)]


def definitions(package):
    for path in sorted(package.rglob("*.py")):
        if not path.stem.startswith("_") or path.stem in ("__init__", "__main__"):
            yield from public(ast.parse(path.read_text()), path.relative_to(package.parent).as_posix())


def section(docstring, title):
    """The text of one section of a docstring, or None."""
    parts = SECTION.split(docstring)
    return dict(zip(parts[1::2], parts[2::2], strict=True)).get(title)


def entries(text):
    """The names that a section explains: what stands in front of a colon, at the section's own depth."""
    return re.findall(r"^ {4}\*{0,2}(\w+):", text, re.MULTILINE)


def parameters(function):
    arguments = function.args
    names = [each.arg for each in (*arguments.posonlyargs, *arguments.args)]
    names += [each.arg for each in (arguments.vararg,) if each is not None]
    names += [each.arg for each in arguments.kwonlyargs]
    names += [each.arg for each in (arguments.kwarg,) if each is not None]
    return [name for name in names if name not in ("self", "cls")]


def fields(node):
    """The fields of a dataclass or pydantic model; None for a class that has none."""
    return [each.target.id for each in node.body if isinstance(each, ast.AnnAssign)] or None


def initialiser(node):
    return next((each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"), None)


def raised(node):
    """Names of the exceptions that a node makes, raises and does not catch, without the functions inside it."""
    found = set().union(*(raised(child) for child in ast.iter_child_nodes(node) if not isinstance(child, INSIDE)))
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
        return found | ({node.exc.func.id} if node.exc.func.id.endswith("Error") else set())
    if isinstance(node, ast.Try):
        kinds = {name.id for each in node.handlers if each.type for name in ast.walk(each.type) if hasattr(name, "id")}
        behind = (raised(child) for child in (*node.handlers, *node.orelse, *node.finalbody))
        return {name for name in found if not above(name) & kinds}.union(*behind)
    return found


def above(name):
    """An exception's name and those of its bases."""
    names = {name}
    if name in ABOVE:
        return names | above(ABOVE[name])
    return names | {base.__name__ for base in getattr(builtins, name, Exception).__mro__}


def takes_tensors(function):
    annotations = [argument.annotation for argument in ast.walk(function.args) if isinstance(argument, ast.arg)]
    names = [node for each in (*annotations, function.returns) if each is not None for node in ast.walk(each)]
    return any(isinstance(node, ast.Name) and node.id == "Tensor" for node in names)


def complaints(definition):
    """What the docstring of a definition lacks, by the rules above."""
    name, node, parent = definition
    docstring = ast.get_docstring(node)
    if not docstring:
        yield f"{name}: no docstring"
        return
    function = initialiser(node) if isinstance(node, ast.ClassDef) else None if isinstance(node, ast.Module) else node
    explained = section(docstring, "Args")
    if explained is not None and not isinstance(node, ast.Module):
        expected = fields(node) if function is None else parameters(function)
        if expected is not None and entries(explained) != expected:
            yield f"{name}: Args are {entries(explained)}, the signature has {expected}"
    if function is None:
        return
    told = section(docstring, "Raises") or ""
    for exception in sorted(raised(function)):
        if not above(exception) & set(entries(told)):
            yield f"{name}: raises {exception}, of which Raises says nothing"
    of_class = ast.get_docstring(parent) or "" if parent is not None and node.name == "forward" else ""
    if (
        function is node
        and takes_tensors(node)
        and not re.search(
            r"\[[^\]]+\]`|\([A-Z\d]\w*,[^)]*\)|\b[Ss]hape|\bscalar|:(?:func|class|meth):`", docstring + of_class
        )
    ):
        yield f"{name}: takes or gives tensors, and says nothing of shapes"


def test_every_docstring_keeps_the_rules():
    found = [complaint for definition in definitions(PACKAGE) for complaint in complaints(definition)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("def f(a): pass", "no docstring"),
        ('def f(a, b):\n  """F.\n\n  Args:\n      b: B.\n  """', "Args are"),
        ('def f():\n  """F."""\n  raise InputError("x")', "raises InputError"),
        ('def f():\n  """F.\n\n  Raises:\n      KeyError: X.\n  """\n  raise InputError("x")', "raises InputError"),
        ('def f(x: dict[str, Tensor]):\n  """F."""', "shapes"),
        ('class A:\n  """A."""\n\n  def forward(self, x: Tensor): pass', "no docstring"),
        ('class A:\n  """A.\n\n  Args:\n      x: X.\n  """\n\n  def __init__(self, y): pass', "Args are"),
        ('class A:\n  """A."""\n\n  def __init__(self): raise ValueError("x")', "raises ValueError"),
        (
            'def f(a, *b, c=1, **d):\n  """F.\n\n  Args:\n      a: A.\n      b: B.\n      c: C.\n      d: D.\n  """',
            None,
        ),
        ('def f():\n  """F.\n\n  Raises:\n      ValueError: X.\n  """\n  raise InputError("x")', None),
        ('def f():\n  """F."""\n  def g(): raise InputError("x")', None),
        ('def f():\n  """F."""\n  try: raise InputError("x")\n  except ValueError: pass', None),
        ('def f():\n  """F."""\n  try: raise InputError("x")\n  except KeyError: pass', "raises InputError"),
        ('def f():\n  """F."""\n  try: pass\n  except KeyError: raise InputError("x")', "raises InputError"),
        ('def f(x: Tensor):\n  """F of ``[N, C]``."""', None),
    ],
)
def test_rules_find_what_they_are_for(source, complaint):
    module = ast.parse(f'"""M."""\n{source}')
    found = [each for definition in public(module, "m") for each in complaints(definition)]
    assert [complaint in each for each in found] == ([] if complaint is None else [True]), found

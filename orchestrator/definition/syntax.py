"""What may stand in a template, decided on its syntax tree before anything runs."""

from __future__ import annotations

import math
from difflib import get_close_matches

from jinja2 import nodes

from orchestrator.definition import checks, filters, list_filters, paths  # noqa: F401  (they enter themselves)
from orchestrator.definition.bounds import MAX_BITS
from orchestrator.definition.functions import FILTERS, TESTS
from orchestrator.definition.methods import METHODS
from orchestrator.errors import TemplateError

Chain = tuple[str | int, ...]
"""A name with what follows it, as far as that is written out: ('steps', 'a', 'output')."""

MAX_DEPTH = 50
MAX_NODES = 5_000

_ALLOWED = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.If, nodes.Name, nodes.Const, nodes.List, nodes.Tuple,
    nodes.Dict, nodes.Pair, nodes.CondExpr, nodes.Filter, nodes.Test, nodes.Call, nodes.Keyword, nodes.Getattr,
    nodes.Getitem, nodes.Slice, nodes.And, nodes.Or, nodes.Not, nodes.Neg, nodes.Pos, nodes.Add, nodes.Sub,
    nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod, nodes.Pow, nodes.Concat, nodes.Compare, nodes.Operand,
)  # fmt: skip
_STATEMENTS: dict[type[nodes.Node], str] = {
    nodes.For: "for", nodes.Assign: "set", nodes.AssignBlock: "set", nodes.Macro: "macro", nodes.Block: "block",
    nodes.Include: "include", nodes.Import: "import", nodes.FromImport: "from", nodes.Extends: "extends",
    nodes.CallBlock: "call", nodes.FilterBlock: "filter", nodes.With: "with",
    nodes.ScopedEvalContextModifier: "autoescape", nodes.Scope: "autoescape",
}  # fmt: skip


def check(tree: nodes.Template) -> frozenset[Chain]:
    """The names that `tree` uses. Raises TemplateError when something in it is not part of the language."""
    _check_size(tree)
    chains: set[Chain] = set()
    stack: list[nodes.Node] = [tree]
    while stack:
        node = stack.pop()
        _check_node(node)
        chain = chain_of(node)
        if chain is not None:
            _check_chain(chain)
            chains.add(chain)
        elif isinstance(node, nodes.Call):
            # What is called is a method's or a function's name, not a value of its own.
            stack += [*node.args, *node.kwargs]
            if isinstance(node.node, nodes.Getattr):
                stack.append(node.node.node)
        else:
            stack.extend(node.iter_child_nodes())
    return frozenset(chains)


def chain_of(node: nodes.Node) -> Chain | None:
    """The chain that `node` is, if it is a name followed by nothing but written-out keys."""
    keys: list[str | int] = []
    while not isinstance(node, nodes.Name):
        if isinstance(node, nodes.Getattr):
            keys.append(node.attr)
        elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and _is_key(node.arg.value):
            keys.append(node.arg.value)
        else:
            return None
        node = node.node
    return (node.name, *reversed(keys))


def dotted(node: nodes.Node) -> str:
    """The name of an expression for an error message: `steps.a.output`, or `(...)` for what has none."""
    keys: list[str] = []
    while isinstance(node, (nodes.Getattr, nodes.Getitem)):
        key: object = node.attr if isinstance(node, nodes.Getattr) else getattr(node.arg, "value", None)
        keys.append(paths.join("x", key)[1:] if isinstance(key, (str, int)) else "[...]")
        node = node.node
    return (node.name if isinstance(node, nodes.Name) else "(...)") + "".join(reversed(keys))


def _check_size(tree: nodes.Node) -> None:
    level: list[nodes.Node] = [tree]
    count = depth = 0
    while level:
        count += len(level)
        depth += 1
        if count > MAX_NODES:
            raise TemplateError(f"the template has more than {MAX_NODES:,} parts; use a script step")
        if depth > MAX_DEPTH:
            raise TemplateError(f"the expression is nested deeper than {MAX_DEPTH} levels; use a script step")
        level = [child for node in level for child in node.iter_child_nodes()]


def _check_node(node: nodes.Node) -> None:
    if not isinstance(node, _ALLOWED):
        word = _STATEMENTS.get(type(node))
        what = f"{{% {word} %}}" if word else type(node).__name__.lower()
        raise TemplateError(f"{what} is not supported; templates have expressions with filters, and {{% if %}}")
    if isinstance(node, (nodes.Filter, nodes.Test)):
        word, table = ("filter", FILTERS) if isinstance(node, nodes.Filter) else ("test", TESTS)
        if node.name not in table:
            raise TemplateError(f"there is no {word} '{node.name}'{_meant(node.name, table)}")
    if isinstance(node, nodes.Call):
        _check_call(node)
    if isinstance(node, (nodes.Call, nodes.Filter, nodes.Test)):
        _check_arguments(node)
    if isinstance(node, nodes.Const):
        _check_constant(node.value)
    if isinstance(node, nodes.Name) and (node.name.startswith("__") or node.name == "self"):
        raise TemplateError(f"'{node.name}' is not defined")


def _check_call(node: nodes.Call) -> None:
    called = node.node
    if isinstance(called, nodes.Name) and called.name == "range":
        return
    if isinstance(called, nodes.Getattr) and called.attr in METHODS:
        return
    if isinstance(called, nodes.Getattr):
        raise TemplateError(f"there is no method '{called.attr}'{_meant(called.attr, METHODS)}")
    name = called.name if isinstance(called, nodes.Name) else "that"
    raise TemplateError(f"'{name}' cannot be called; only range() and the methods of texts and mappings can")


def _check_arguments(node: nodes.Call | nodes.Filter | nodes.Test) -> None:
    if node.dyn_args is not None or node.dyn_kwargs is not None:
        raise TemplateError("'*' and '**' in arguments are not supported; write the arguments out")
    names = [keyword.key for keyword in node.kwargs]
    if len(set(names)) < len(names):
        raise TemplateError("an argument is given twice")
    if any(str(name).startswith("_") for name in names):
        raise TemplateError("an argument's name cannot start with '_'")


def _check_constant(value: object) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise TemplateError("the number is too large")
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise TemplateError(f"the number has more than {MAX_BITS:,} bits")


def _check_chain(chain: Chain) -> None:
    # Which steps a template reads must be known before it runs: it decides what has to come first.
    if chain[0] == "steps" and (len(chain) < 2 or not isinstance(chain[1], str)):
        raise TemplateError("'steps' must name the step it reads: steps.<id> or steps['<id>']")


def _is_key(value: object) -> bool:
    return isinstance(value, (str, int)) and not isinstance(value, bool)


def _meant(name: str, known: object) -> str:
    close = get_close_matches(name, list(known), n=1)  # type: ignore[call-overload]
    return f"; did you mean '{close[0]}'?" if close else ""

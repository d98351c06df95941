"""Templates: compiled once, rendered often, bounded always.

    {{ variables.x }}  {{ input.x }}  {{ steps.a.output.b }}  {{ secrets.k }}  {{ loop.item }}
    {{ trigger.x }}  {{ execution.id }}

A text that is one whole expression keeps the expression's type; text around it makes a text. A name that is
not there is an error, unless `| default(...)` or `is defined` catches it. Line ends in a text with templates
are "\\n", as Jinja makes them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Protocol, TypeVar

import jinja2
from jinja2 import nodes
from jinja2.parser import Parser

from orchestrator.definition import operations, paths, syntax
from orchestrator.definition.bounds import (
    MAX_SOURCE,
    Budget,
    plain,
    rendered_budget,
    text_of,
    work_budget,
)
from orchestrator.definition.sandbox import Environment
from orchestrator.definition.syntax import Chain
from orchestrator.errors import TemplateError

T = TypeVar("T")
Json = Any
Context = Mapping[str, object]

ROOTS = frozenset(("variables", "input", "steps", "secrets", "loop", "trigger", "execution"))
"""The names a template starts from."""

_CACHED_SOURCE = 8 * 1024  # longer ones would let a few definitions fill the cache's memory
_EXPECTED = (
    jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, SyntaxError,
    TypeError, ValueError,
)  # fmt: skip
_environment = Environment()

# One name with dotted keys: most templates are nothing else, and then Jinja's compiler is not needed.
_NAME = rf"\{{\{{[ \t\n]*((?:{'|'.join(sorted(ROOTS))})(?:\.[A-Za-z_][A-Za-z0-9_]*)*)[ \t\n]*\}}\}}"
_SIMPLE = re.compile(_NAME)


class Program(Protocol):
    """A template, ready to run."""

    whole: bool
    """It is one expression, with nothing around it, and keeps its type."""
    chains: frozenset[Chain]
    """The names it uses, each with the keys that are written out."""

    def run(self, context: Context, work: Budget) -> object:
        """Its value, which may be undefined, or no JSON. Raises what `_explained` expects."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """A value with its templates compiled. Immutable, and safe to share between threads."""

    constant: bool
    """There is no template in it."""
    chains: frozenset[Chain]
    _evaluate: Callable[[Context, Budget, Budget], Json]

    def render(self, context: Context, work: Budget | None = None) -> Json:
        """The value with its templates evaluated; the very same object if it is constant. `work` is what this may
        cost, if it is not to have an allowance of its own.

        Raises TemplateError, which names the expression and what is wrong with it.
        """
        return self._evaluate(context, work or work_budget(), rendered_budget())

    @property
    def steps(self) -> frozenset[str]:
        """Ids of the steps it reads."""
        return frozenset(str(chain[1]) for chain in self.chains if chain[0] == "steps")

    @property
    def roots(self) -> frozenset[str]:
        """The top names it uses."""
        return frozenset(str(chain[0]) for chain in self.chains)

    @property
    def names(self) -> frozenset[str]:
        """Every name it uses as far as it is written out, such as `steps.a.output`."""
        return frozenset(paths.join_all(chain) for chain in self.chains)


def contains_template(value: str) -> bool:
    """Whether `value` is to be rendered at all."""
    return "{{" in value or "{%" in value


def compile_value(value: Json) -> Compiled:
    """Compile every template in `value`: a text, or lists and mappings of them (keys are taken as they are).

    Raises TemplateError.
    """
    if isinstance(value, str) and contains_template(value):
        return compile_text(value)
    if isinstance(value, Mapping):
        parts = {key: compile_value(item) for key, item in value.items()}
        if all(part.constant for part in parts.values()):
            return _constant(value)
        return Compiled(False, _chains(parts.values()), lambda *args: _each_value(parts, *args))
    if isinstance(value, (list, tuple)):
        items = [compile_value(item) for item in value]
        if all(item.constant for item in items):
            return _constant(value)
        return Compiled(False, _chains(items), lambda *args: [item._evaluate(*args) for item in items])
    return _constant(value)


def compile_text(source: str) -> Compiled:
    """Compile one text. Raises TemplateError."""
    program = _program_of(source)
    return Compiled(False, program.chains, lambda *args: _evaluate(source, program, *args))


def compile_expression(source: str) -> Compiled:
    """Compile a condition, written as `{{ a.b }}` or bare as `a.b and c > 3`; it renders to a typed value.

    Raises TemplateError.
    """
    program = _condition_of(source)
    return Compiled(False, program.chains, lambda *args: _evaluate(source, program, *args))


def tokens(source: str, *, expression: bool = False) -> list[tuple[str, str]]:
    """(kind, text) of each token in a text with templates, or in an expression without braces; kinds are Jinja's
    (`data`, `variable_begin`, `name`, `whitespace`...). The texts together are the source again, but for the white
    space that `{{-` takes away.

    Raises TemplateError.
    """
    _check_length(source)
    state = "variable" if expression else None
    found = _explained(source, lambda: list(_environment.lexer.tokeniter(source, None, None, state)))
    return [(kind, text) for _, kind, text in found]


def _constant(value: Json) -> Compiled:
    return Compiled(True, frozenset(), lambda *_: value)


def _chains(parts: Any) -> frozenset[Chain]:
    return frozenset().union(*(part.chains for part in parts))


def _each_value(parts: Mapping[str, Compiled], context: Context, work: Budget, size: Budget) -> dict[str, Json]:
    return {key: part._evaluate(context, work, size) for key, part in parts.items()}


def _evaluate(source: str, program: Program, context: Context, work: Budget, size: Budget) -> Json:
    return _explained(source, lambda: plain(program.run(context, work), size))


# -- compiling -----------------------------------------------------------------------------------------------


def _program_of(source: str) -> Program:
    return _cached(source) if len(source) <= _CACHED_SOURCE else _compile(source)


def _compile(source: str) -> Program:
    _check_length(source)
    return _names_only(source) or _explained(source, lambda: _parsed(source))


def _condition_of(source: str) -> Program:
    return _cached_condition(source) if len(source) <= _CACHED_SOURCE else _compile_condition(source)


def _compile_condition(source: str) -> Program:
    _check_length(source)
    text = source.strip()
    if not text:
        raise TemplateError("the expression is empty; write one such as steps.a.output.ok")
    if not text.startswith(("{{", "{%")):
        return _explained(source, lambda: _bare(text))
    program = _compile(text)
    if not program.whole:
        raise TemplateError(f"{_shown(source)}: a condition is one expression; write it as {{{{ a and b }}}}")
    return program


_cached = lru_cache(maxsize=4096)(_compile)
_cached_condition = lru_cache(maxsize=1024)(_compile_condition)


def _check_length(source: str) -> None:
    if len(source) > MAX_SOURCE:
        raise TemplateError(f"{_shown(source)}: the template is longer than {MAX_SOURCE:,} characters")


def _parsed(source: str) -> Program:
    tree = _environment._parse(source, None, None)
    chains = syntax.check(tree)
    whole = _whole_expression(tree)
    return _Text(tree, chains) if whole is None else _Expression(_assignment(whole), chains)


def _bare(source: str) -> Program:
    parser = Parser(_environment, source, state="variable")
    expression = parser.parse_expression()
    if not parser.stream.eos:
        parser.fail(f"unexpected '{parser.stream.current.value}' after the expression")
    tree = nodes.Template([nodes.Output([expression], lineno=1)], lineno=1)
    return _Expression(_assignment(expression), syntax.check(tree))


def _whole_expression(tree: nodes.Template) -> nodes.Expr | None:
    """The one expression that the template is, with at most white space around it."""
    if len(tree.body) != 1 or not isinstance(tree.body[0], nodes.Output):
        return None
    expressions = [node for node in tree.body[0].nodes if not _is_blank(node)]
    only = expressions[0] if len(expressions) == 1 else None
    return None if isinstance(only, nodes.TemplateData) else only


def _is_blank(node: nodes.Node) -> bool:
    return isinstance(node, nodes.TemplateData) and not node.data.strip()


def _assignment(expression: nodes.Expr) -> nodes.Template:
    """A template that leaves the expression's value in the variable `result`, as Jinja's own
    Environment.compile_expression does."""
    body: list[nodes.Node] = [nodes.Assign(nodes.Name("result", "store"), expression, lineno=1)]
    tree = nodes.Template(body, lineno=1)
    tree.set_environment(_environment)
    return tree


def _names_only(source: str) -> Program | None:
    """A program for a text with nothing but dotted names in it, None for any other."""
    if "{%" in source or "\r" in source:
        return None
    pieces = _SIMPLE.split(source)
    texts, names = pieces[::2], [tuple(name.split(".")) for name in pieces[1::2]]
    if any("{{" in text for text in texts) or any(name == ("steps",) for name in names):
        return None
    # A brace before the name would belong to '{{', and one after it to '}}'.
    if any(text.endswith("{") for text in texts[:-1]) or any(text.startswith("}") for text in texts[1:]):
        return None
    if len(names) == 1 and not "".join(texts).strip():
        return _Name(names[0])
    return _Names(tuple(texts), tuple(names))


# -- programs ------------------------------------------------------------------------------------------------


class _Generated:
    """What Jinja's compiler makes of a syntax tree."""

    def __init__(self, tree: nodes.Template, chains: frozenset[Chain]) -> None:
        self.tree = tree
        self.chains = chains

    @cached_property
    def template(self) -> jinja2.Template:
        # Compiling takes ten times as long as parsing, and validation only needs the latter.
        return _environment.program(self.tree)


class _Expression(_Generated):
    """A single expression, of whatever type."""

    whole = True

    def run(self, context: Context, work: Budget) -> object:
        names = _environment.context_for(context, work)
        for _ in self.template.root_render_func(names):
            pass
        return names.vars["result"]


class _Text(_Generated):
    """A text with expressions in it, or `{% if %}`."""

    whole = False

    def run(self, context: Context, work: Budget) -> object:
        size = rendered_budget(within=work)
        pieces: list[str] = []
        for piece in self.template.root_render_func(_environment.context_for(context, work)):
            size.spend(len(piece))
            pieces.append(piece)
        return "".join(pieces)


class _Name:
    """A single dotted name."""

    whole = True

    def __init__(self, name: tuple[str, ...]) -> None:
        self.name = name
        self.chains: frozenset[Chain] = frozenset((name,))

    def run(self, context: Context, work: Budget) -> object:
        work.spend(len(self.name))
        return _look_up(self.name, context)


class _Names:
    """A text with dotted names in it."""

    whole = False

    def __init__(self, texts: tuple[str, ...], names: tuple[tuple[str, ...], ...]) -> None:
        self.texts = texts
        self.names = names
        self.chains: frozenset[Chain] = frozenset(names)

    def run(self, context: Context, work: Budget) -> object:
        size = rendered_budget(within=work)
        pieces = [self.texts[0]]
        for name, text in zip(self.names, self.texts[1:], strict=True):
            piece = text_of(_look_up(name, context), work)
            size.spend(len(piece) + len(text))
            pieces += (piece, text)
        return "".join(pieces)


def _look_up(name: tuple[str, ...], context: Context) -> object:
    dotted = name[0]
    value = context[dotted] if dotted in context else operations.Missing(name=dotted)
    for key in name[1:]:
        dotted += f".{key}"
        value = operations.member(value, key, dotted)
    return value


# -- errors --------------------------------------------------------------------------------------------------


def _explained(source: str, act: Callable[[], T]) -> T:
    """Do it; whatever goes wrong becomes a TemplateError that shows the source."""
    try:
        return act()
    except TemplateError as error:
        reason = str(error)
    except jinja2.TemplateError as error:
        reason = str(error.message)
    except RecursionError:
        reason = f"the expression or its value is nested too deeply; at most {syntax.MAX_DEPTH} levels"
    except _EXPECTED as error:
        reason = str(error) or type(error).__name__
    raise TemplateError(f"{_shown(source)}: {reason}")


def _shown(source: str) -> str:
    text = " ".join(source[:200].split())
    return text if len(text) <= 100 else text[:97] + "..."

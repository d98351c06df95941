"""Files with the texts of emails: `<name>.txt`, `<name>.html` and `<name>.subject` in the templates folder.

They are written in the language of the definitions, with its bounds. Texts put into an HTML file are escaped.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jinja2
from jinja2 import pass_context

from orchestrator.definition import syntax
from orchestrator.definition.bounds import MAX_SOURCE, rendered_budget, text_of, work_budget
from orchestrator.definition.sandbox import BoundedContext, Environment
from orchestrator.errors import StepFailed, TemplateError
from workers.steps.contract import config_mistake

_EXPECTED = (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError)


@dataclass(frozen=True, slots=True)
class Texts:
    """What the files of one template say; None where there is no such file. A subject is one line."""

    text: str | None
    html: str | None
    subject: str | None


def render(name: str, folder: Path, context: Mapping[str, object]) -> Texts:
    """The texts of the template `name` in `folder`.

    Raises StepFailed of the kinds `config` (no such template, or one outside the folder) and `template`.
    """
    text, page, subject = (_rendered(name, suffix, folder, context) for suffix in (".txt", ".html", ".subject"))
    if text is None and page is None:
        raise config_mistake(f"there is no template {name}.txt or {name}.html in {folder} (executor.templates_dir)")
    return Texts(text, page, subject)


def _rendered(name: str, suffix: str, folder: Path, context: Mapping[str, object]) -> str | None:
    source = _source(f"{name}{suffix}", folder)
    if source is None:
        return None
    environment = _HTML if suffix == ".html" else _PLAIN
    try:
        return _render(environment, source, context)
    except jinja2.TemplateSyntaxError as error:
        reason = f"line {error.lineno}: {error.message}"
    except RecursionError:
        reason = "it is nested too deeply"
    except (TemplateError, jinja2.TemplateError, *_EXPECTED) as error:
        reason = str(error) or type(error).__name__
    raise StepFailed(f"the template {name}{suffix}: {reason}", kind="template", retryable=False)


def _source(file: str, folder: Path) -> str | None:
    base = folder.resolve()
    try:
        found = (base / file).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):
        return None
    if not found.is_relative_to(base):
        raise config_mistake(f"the template {file} is outside {base} (executor.templates_dir)")
    if not found.is_file():
        return None
    try:
        # As many characters as are too many, and no more, whatever the file's size.
        with found.open(encoding="utf-8") as opened:
            source = opened.read(MAX_SOURCE + 1)
    except (OSError, UnicodeError) as error:
        raise config_mistake(f"the template {file} cannot be read as UTF-8: {error}") from error
    if len(source) > MAX_SOURCE:
        raise config_mistake(f"the template {file} is longer than {MAX_SOURCE:,} characters")
    return source


def _render(environment: Environment, source: str, context: Mapping[str, object]) -> str:
    tree = environment.parse(source)
    syntax.check(tree)
    work = work_budget()
    size = rendered_budget(within=work)
    pieces = []
    for piece in environment.program(tree).root_render_func(environment.context_for(context, work)):
        size.spend(len(piece))
        pieces.append(piece)
    return "".join(pieces)


@pass_context
def _as_html(context: BoundedContext, value: object) -> str:
    return html.escape(text_of(value, context.budget))


class _HtmlEnvironment(Environment):
    """Escapes whatever an expression puts into the text."""

    def __init__(self) -> None:
        super().__init__()
        self.finalize = _as_html


_PLAIN = Environment()
_HTML = _HtmlEnvironment()

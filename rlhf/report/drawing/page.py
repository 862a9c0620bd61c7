"""Pages from the report's templates. Light: jinja2 when called."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from rlhf.report.drawing import text
from rlhf.report.drawing.text import clock, version_label

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATES = Path(__file__).resolve().parents[1] / "templates"


def write_page(page: Path, content: str) -> None:
    """Write the page so that a reader sees either the old page or the whole new one; half a character becomes "?"."""
    partial = page.with_name(page.name + ".partial")
    partial.write_text(content, encoding="utf-8", errors="replace")
    os.replace(partial, page)


def page_template(name: str) -> Template:
    """A template of the report's; what it is given is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"clock": clock, "memory": text.memory, "signed": text.signed}
    environment.filters |= {"label": version_label, "breakable": breakable}
    return environment.get_template(name)


def breakable(name: str) -> Markup:
    """A name that a narrow table breaks behind its slashes and underscores, not in the middle of a word."""
    return Markup(re.sub(r"([/_])", r"\1<wbr>", str(escape(name))))

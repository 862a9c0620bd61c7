"""Pages from this folder's templates."""

from __future__ import annotations

import os
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from rlhf.report import text
from rlhf.report.text import clock, version_label


def write_page(page: Path, content: str) -> None:
    """Write the page so that a reader sees either the old page or the whole new one."""
    partial = page.with_name(page.name + ".partial")
    partial.write_text(content, encoding="utf-8")
    os.replace(partial, page)


def page_template(name: str) -> Template:
    """A template of this folder; what it is given is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"clock": clock, "memory": text.memory, "signed": text.signed, "label": version_label}
    return environment.get_template(name)

"""What models and data wrote, as HTML that does nothing: all of it is escaped, links and images stay text."""

from __future__ import annotations

import re
from functools import cache
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

LONGEST_MARKDOWN = 20_000  # characters; a longer text is shown as it is, because a parser may take long over it
# control characters, and those that turn the direction of the text around them: shown by their number
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


@cache
def _markdown() -> MarkdownIt:
    from markdown_it import MarkdownIt

    inert = ["link", "image", "autolink", "html_inline", "html_block", "reference"]
    return MarkdownIt("commonmark", {"html": False}).enable("table").disable(inert)


def render(text: str) -> str:
    """Markdown (headings, lists, tables, code) as HTML without links, images, raw HTML or attributes of the text's own.

    A link or an image is shown as it was written. Characters that are invisible or turn the direction of text are shown
    by their number, and each text is an island of its own direction. Code and tables, which scroll where they are wide,
    are reached by keyboard.
    """
    marked = _INVISIBLE.sub(_named, text.replace("\r\n", "\n").replace("\r", "\n"))
    body: str = (
        f"<p class='plain'>{escape(marked)}</p>" if len(marked) > LONGEST_MARKDOWN else _markdown().render(marked)
    )
    # a code block's language is the text's own word: it stays out of the attributes
    body = re.sub(r'<code class="[^"]*">', "<code>", body)
    return re.sub(r"<(pre|table)>", r'<\1 tabindex="0">', body)


def render_guidelines(text: str) -> str:
    """The user's own Markdown file, under the same rules."""
    return str(_markdown().render(text))


def _named(found: re.Match[str]) -> str:
    return f"⟦U+{ord(found.group()):04X}⟧"

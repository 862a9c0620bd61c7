"""The plain text of HTML, as StackExchange posts are kept."""

from __future__ import annotations

import re
from html.parser import HTMLParser

_BLOCKS = {"p", "pre", "ul", "ol", "blockquote", "div", "table", "hr", "h1", "h2", "h3", "h4", "h5", "h6"}
_BEFORE = {"li": "\n- ", "br": "\n", "tr": "\n"} | dict.fromkeys(_BLOCKS, "\n\n")


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self.code_depth = 0

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.text += _BEFORE.get(tag, "")
        self.code_depth += tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        self.text += "\n\n" if tag in _BLOCKS else ""
        self.code_depth -= tag == "pre"

    def handle_data(self, data: str) -> None:
        if self.code_depth <= 0:
            data = re.sub(r"\s+", " ", data)
            if self.text.endswith(("\n", " ")):
                data = data.lstrip()
        self.text += data


def text_of_html(html: str) -> str:
    """Paragraphs parted by an empty line, list items on lines of their own, code as it stands, no other markup."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    return re.sub(r"\n{3,}", "\n\n", re.sub(r" +\n", "\n", reader.text)).strip()

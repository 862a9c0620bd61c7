"""`rlhf statistics | look | quality-gate`: rows, as the recipes read them."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rlhf.commands import Command
from rlhf.data.layouts.declaration import Kind
from rlhf.data.rows import Domain
from rlhf.errors import InputError
from rlhf.paths import model_place
from rlhf.terminal import coloured


def add_to(command: Command) -> None:
    """Add the commands."""
    added = command(
        "statistics",
        lambda a: statistics(a.files, a.tokenizer, a.domain),
        "the paper's table of preference sets: comparisons, turns, tokens",
    )
    added.add_argument("files", nargs="+", metavar="file", help="preferences: files, folders or hub names")
    added.add_argument("--tokenizer", required=True, type=model_place, help="folder of a saved tokenizer or checkpoint")
    added.add_argument("--domain", choices=("helpfulness", "safety"), help="of PKU-SafeRLHF's comparisons, which one")
    added = command(
        "look",
        lambda a: look(a.rows, a.kind, a.tokenizer),
        "a file's rows as they are read and rendered, counts, lengths, and what is left out and why",
    )
    added.add_argument("rows", metavar="file", help="a file, folder or hub name")
    added.add_argument("--as", dest="kind", choices=("sft", "preferences", "prompts"), help="default: by its layout")
    added.add_argument(
        "--tokenizer", type=model_place, help="folder of a saved tokenizer or checkpoint; default: characters"
    )
    added = command(
        "quality-gate",
        lambda a: quality_gate(a.rows, a.output, a.near),
        "are SFT rows consistent, do they follow their instruction, are they new, and no refusals?",
    )
    added.add_argument("rows", help="SFT rows: a file, folder or hub name")
    added.add_argument("--output", type=Path, help="write the rows that pass, as {messages}, to this file")
    added.add_argument("--near", type=float, default=0.8, help="similarity of a near-duplicate; default: 0.8")


def statistics(files: Sequence[str], tokenizer: Path, domain: Domain | None) -> None:
    """Print the table in Markdown, a line a set and a total; bad rows are left out and counted on stderr."""
    from rlhf.data.loading import load_preferences

    _existing_tokenizer(tokenizer)
    names = Counter(Path(file).name for file in files)
    sets = {}
    for file in files:
        name = Path(file).name if names[Path(file).name] == 1 else file
        sets[name] = load_preferences(file, domain=domain, on_bad_row="skip")

    from transformers import AutoTokenizer

    from rlhf.data.statistics import statistics_table
    from rlhf.models.checkpoint.pretrained import from_pretrained

    print(statistics_table(sets, from_pretrained(AutoTokenizer, tokenizer, "tokenizer")), end="")


def look(rows: str, kind: Kind | None, tokenizer: Path | None) -> bool:
    """Print rows of a source as the recipes read and render them (`rlhf.data.looking`); False where none is usable."""
    from rlhf.data.looking import look_at, look_text

    renderer = None
    if tokenizer is not None:
        _existing_tokenizer(tokenizer)
        from transformers import AutoTokenizer

        from rlhf.conversation import Renderer
        from rlhf.models.checkpoint.context import Context
        from rlhf.models.checkpoint.pretrained import from_pretrained

        loaded = from_pretrained(AutoTokenizer, tokenizer, "tokenizer")
        loaded.pad_token = loaded.pad_token or loaded.eos_token  # nothing is padded here
        try:
            context = Context.of_checkpoint(tokenizer)
        except InputError:  # a tokenizer alone
            context = Context.of_tokenizer(loaded)
        renderer = Renderer(loaded, context.length)
    found = look_at(rows, kind, renderer)
    print(look_text(found, rows, tokens=renderer is not None, colours=coloured(sys.stdout)))
    return found.rows > 0


def quality_gate(rows: str, output: Path | None, near: float) -> bool:
    """Print how many rows fail by which check (`rlhf.data.corpus.quality`); False where one does."""
    from rlhf.data.corpus.quality import check_rows, passing_rows, verdict_text
    from rlhf.data.loading import untagged
    from rlhf.jsonl import write_rows

    read = Path(untagged(rows))
    if output is not None and output.exists() and read.exists() and output.samefile(read):
        raise InputError(f"output: {output} is the file that is read; name another one")
    verdict = check_rows(rows, near=near)
    print(verdict_text(verdict))
    if output is not None:
        write_rows(output, passing_rows(rows, verdict))
    return not verdict.failures


def _existing_tokenizer(folder: Path) -> None:
    if not (folder / "tokenizer_config.json").is_file():
        raise InputError(f"tokenizer: {folder} has no tokenizer_config.json; name a folder with a saved tokenizer")

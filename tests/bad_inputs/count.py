"""How bad input is answered: a table of kinds by verdict.

    python tests/bad_inputs/count.py [KIND …] [--show] [--every N]

Every case is a command in a fork of one process, in a folder of its own.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import all_cases
from answering import answered
from forked import VERDICTS, preload
from world import make_world


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", choices=[*all_cases.kinds(), []], metavar="KIND")
    parser.add_argument("--show", action="store_true", help="print what each said")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take every Nth case of each kind")
    asked = parser.parse_args()
    cases = all_cases.sample(asked.every, asked.kinds or None)
    table: dict[str, Counter[str]] = defaultdict(Counter)
    accepted: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as place:
        here = Path(place)
        preload(sorted({case.words[0] for case in cases} - {"rlhf"}))
        world = make_world(here / "world")
        for case, ended in answered(cases, world, here):
            table[case.kind][ended.verdict] += 1
            if ended.verdict == "accepted":
                accepted[case.accepted or f"? {case.kind}: {case.name}"] += 1
            if asked.show or ended.verdict not in ("one sentence", "verdict", "accepted"):
                tail = ended.err.strip().replace(place, "")
                tail = tail if asked.show else tail[-1500:]
                print(
                    f"[{ended.verdict} {ended.code} {ended.seconds:.1f} s] {case.kind}, {case.name}\n    {tail}",
                    flush=True,
                )
    print("| kind | " + " | ".join(VERDICTS) + " |\n|---" * 1 + "|---" * len(VERDICTS) + "|")
    for kind, counts in table.items():
        print(f"| {kind} | " + " | ".join(str(counts[verdict] or "") for verdict in VERDICTS) + " |")
    total = sum(table.values(), Counter())
    print(f"| all {sum(total.values())} | " + " | ".join(str(total[verdict]) for verdict in VERDICTS) + " |")
    for reason, count in accepted.most_common():
        print(f"accepted {count}: {reason}")


if __name__ == "__main__":
    main()

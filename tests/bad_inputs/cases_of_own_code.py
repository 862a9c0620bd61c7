"""Rewards, estimators, rules, annotators, scorers and layouts of a user's own that do not do what they are to do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from case import Case
from world import REWARDS, call

SCORES = {
    "raises": "raise ValueError('no')",
    "raises what has no text": "raise Exception",
    "raises a sentence of many lines": "raise ValueError('one\\ntwo\\nthree' * 50)",
    "a key that is not there": "return {}['x']",
    "asserts": "assert False",
    "exits": "sys.exit(0)",
    "exits with a word": "sys.exit('enough')",
    "exits at once": "os._exit(0)",
    "interrupts": "raise KeyboardInterrupt",
    "a generator's end": "raise StopIteration",
    "recurses": "return bad(conversations)",
    "takes all memory": "return torch.zeros(10**13)",
    "complex": "return good(conversations).to(torch.complex64)",
    "on another device": "return good(conversations).to('meta')",
    "NaN": "return good(conversations) * float('nan')",
    "infinite": "return good(conversations) + float('inf')",
    "too large for float32": "return good(conversations).double() * 0 + 1e300",
    "None": "return None",
    "a list": "return good(conversations).tolist()",
    "an array": "return good(conversations).numpy()",
    "a number": "return 1.0",
    "a column": "return good(conversations)[:, None]",
    "one less": "return good(conversations)[:-1]",
    "texts": "return ['good'] * len(conversations)",
    "sparse": "return good(conversations).to_sparse()",
    "quantised": "return torch.quantize_per_tensor(good(conversations), 0.1, 0, torch.quint8)",
    "fails later": "global calls\n    calls += 1\n    return good(conversations) if calls < 2 else 1 / 0",
    "NaN later": "global calls\n    calls += 1\n    return good(conversations) * (1 if calls < 2 else float('nan'))",
    "changes what it is given": "conversations[0].clear()\n    return torch.zeros(len(conversations))",
    "no module": None,
}
REASONS = {
    "fails later": "a reward that is asked once fails at no second time",
    "NaN later": "a reward that is asked once fails at no second time",
    "exits at once": "os._exit lets nobody speak; the driver says that the stage ended without writing its folder",
    "changes what it is given": "where it is given a copy, nothing else changes",
}
TAKEN_SCORES = {
    "whole numbers": "return good(conversations).long()",
    "booleans": "return good(conversations) > 0",
    "half": "return good(conversations).half()",
    "with a gradient": "return good(conversations).requires_grad_()",
}
PLACES = (
    call("rejection_sampling", safety="mine:bad"),
    call("ppo", helpfulness="mine:bad"),
    call("evaluate", helpfulness="mine:bad"),
    call("evaluate_rewards", rewards="{one: 'mine:bad', two: 'mine:good'}"),
    call("context_distillation", safety="mine:bad"),
    call("temperature_sweep", safety="mine:bad"),
    call("gate_sweep", safety="mine:bad"),
    call("collect_preferences", helpfulness="mine:bad"),
    ("rlhf", "verify-reward", "mine:bad"),
)
OTHERS = {
    "an estimator that raises": ("ppo", {"ppo.estimator": "own:Raising"}),
    "an estimator of NaN": ("ppo", {"ppo.estimator": "own:Nan"}),
    "an estimator of another shape": ("ppo", {"ppo.estimator": "own:Short"}),
    "an estimator that is a number": ("ppo", {"ppo.estimator": "own:NUMBER"}),
    "a rule that raises": ("rejection_sampling", {"selection.rule": "own:raises"}),
    "a rule of nothing": ("rejection_sampling", {"selection.rule": "own:nothing"}),
    "a rule of numbers beyond": ("rejection_sampling", {"selection.rule": "own:beyond"}),
    "an annotator that raises": ("collect_preferences", {"annotator": "own:Raising"}),
    "an annotator of nothing": ("collect_preferences", {"annotator": "own:Silent"}),
    "an annotator that exits": ("collect_preferences", {"annotator": "own:Exiting"}),
    "an annotator of other pairs": ("collect_preferences", {"annotator": "own:Astray"}),
    "an annotator of no kind": ("collect_preferences", {"annotator": "own:NUMBER"}),
    "an annotator whose attributes raise": ("collect_preferences", {"annotator": "own:Odd"}),
    "a scorer whose attributes raise": ("evaluate", {"scorer": "own:Odd", "world": "prompts.jsonl"}),
    "a scorer that raises": ("evaluate", {"scorer": "own:Scorer", "world": "prompts.jsonl"}),
    "a scorer of None": ("evaluate", {"scorer": "own:Silent", "world": "prompts.jsonl"}),
    "a sampler that raises": ("evaluate", {"policy.backend": "own:raises"}),
    "a sampler of None": ("evaluate", {"policy.backend": "own:none"}),
    "a sampler of too few": ("evaluate", {"policy.backend": "own:few"}),
    "a layout that raises": ("sft", {"data": "chats.jsonl#own:LAYOUT"}),
    "a layout that is none": ("sft", {"data": "chats.jsonl#own:NUMBER"}),
    "a layout of a module that exits": ("sft", {"data": "chats.jsonl#exits:LAYOUT"}),
    "a reward whose module exits": ("ppo", {"helpfulness": "exits:reward"}),
    "a reward whose module raises": ("ppo", {"helpfulness": "raises:reward"}),
    "a reward whose module does not end well": ("evaluate", {"helpfulness": "syntax:reward"}),
    "a reward whose module recurses": ("evaluate", {"helpfulness": "recurses:reward"}),
    "a reward class with arguments": ("evaluate", {"helpfulness": "own:Needy"}),
    "a reward that is a number": ("evaluate", {"helpfulness": "own:NUMBER"}),
    "a reward whose attributes raise": ("evaluate", {"helpfulness": "own:Odd"}),
    "a path with three colons": ("evaluate", {"helpfulness": "a:b:c"}),
    "a path of dots": ("evaluate", {"helpfulness": "..:x"}),
    "a path without module": ("evaluate", {"helpfulness": ":x"}),
    "a path without name": ("evaluate", {"helpfulness": "own:"}),
}
OWN = """
import sys, torch
NUMBER = 3

def raises(*args, **kwargs): raise RuntimeError("no")
def none(*args, **kwargs): return None
def nothing(*args, **kwargs): return []
def beyond(*args, **kwargs): return [999]

class Raising:
    name = "raising"; needs_value = False; min_samples = 1
    def advantages(self, *args, **kwargs): raise RuntimeError("no")
    def judge(self, pairs): raise RuntimeError("no")

class Nan:
    needs_value = False; min_samples = 1
    def advantages(self, *args, **kwargs):
        found = args[0]
        tensor = next(v for v in vars(found).values() if torch.is_tensor(v)) if not torch.is_tensor(found) else found
        return torch.full_like(tensor.float(), float("nan"))

class Short:
    needs_value = False; min_samples = 1
    def advantages(self, *args, **kwargs): return torch.zeros(1)

class Silent:
    name = "silent"
    def __init__(self, world=None): pass
    def judge(self, pairs): return None if isinstance(pairs, list) else iter(())

class Exiting:
    name = "exiting"
    def judge(self, pairs): sys.exit(0)

class Astray:
    name = "astray"
    def judge(self, pairs):
        from rlhf.annotation.protocol import Judgement
        for pair in pairs: yield Judgement("unheard-of", self.name, "a", "better", True, True)

class Scorer:
    def __init__(self, world): pass
    def judge(self, conversation): raise RuntimeError("no")

class few:
    def __init__(self, *args): pass
    def sample(self, prompts, num_samples, params, *args): return []

class Needy:
    def __init__(self, world): pass

class Odd:
    def __init__(self, *args, **kwargs): pass
    def __getattr__(self, name): raise RuntimeError("no attribute for you")
    def __call__(self, conversations): return torch.zeros(len(conversations))

class LAYOUT:
    pass
"""
MODULES = {
    "own.py": OWN,
    "exits.py": "import sys\nsys.exit(0)\n",
    "raises.py": "raise RuntimeError('no')\n",
    "syntax.py": "def (\n",
    "recurses.py": "def f():\n    f()\nf()\n",
}


def cases() -> Iterator[Case]:
    """All of this file."""
    for number, (name, body) in enumerate(SCORES.items()):
        for turn in range(3):
            words = PLACES[(number + 3 * turn) % len(PLACES)]
            reason = REASONS.get(name, "")
            yield Case("rewards", f"{words[0]}: {name}", words, _module(body), reason)
    for number, (name, body) in enumerate(TAKEN_SCORES.items()):
        words = PLACES[number % 3]
        yield Case("rewards", f"{words[0]}: {name}", words, _module(body), "numbers are numbers, whatever their type")
    for name, (recipe, options) in OTHERS.items():
        yield Case("other code", f"{recipe}: {name}", call(recipe, options), _modules)


def _module(body: str | None):
    def prepare(folder: Path) -> None:
        text = "" if body is None else f"{REWARDS}\ndef bad(conversations):\n    {body}\n"
        (folder / "mine.py").write_text(text, encoding="utf-8")

    return prepare


def _modules(folder: Path) -> None:
    for name, text in MODULES.items():
        (folder / name).write_text(text, encoding="utf-8")

"""Who obeys at which turn; checkers; the attention picture."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from rlhf.conversation import Renderer
from rlhf.errors import InputError
from rlhf.evaluation.answers import Answer
from rlhf.evaluation.instructions.attention import answer_spans, attention_to, binned, largest_attention, text_span
from rlhf.evaluation.instructions.checkers import Judge, load_checker, obeys_patterns
from rlhf.evaluation.instructions.consistency import Trial, consistency_figures, everyday_figures, obedience
from rlhf.intervals import wilson
from rlhf.models.policy import load_policy
from rlhf.report.pages.consistency import attention_table, consistency_table, everyday_table
from rlhf.sampling.protocol import Sample, SamplingParams
from rlhf.synthesis.instructions import Constraint, Instruction, draw_instructions, read_constraints

ROOT = Path(__file__).resolve().parents[4]
LOUD = Constraint.from_dict({"kind": "figure", "value": "Al", "pattern": "!$"})
LONG = Constraint.from_dict({"kind": "hobby", "value": "talk", "pattern": r"\w+ \w+"})
BOTH = Instruction("Act as Al. You enjoy talk.", (LOUD, LONG))


def chat(*answers: str) -> list[dict[str, str]]:
    messages = []
    for number, answer in enumerate(answers):
        messages += [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": answer}]
    return messages


def test_every_answer_is_checked_with_the_dialogue_so_far() -> None:
    seen = []

    def checker(instructions, conversations):
        seen.extend((i.text, len(c), c[0]["content"]) for i, c in zip(instructions, conversations, strict=True))
        return obeys_patterns(instructions, conversations)

    one = Instruction("Act as Al.", (LOUD,))
    assert obedience(checker, [BOTH, one, one], [chat("a b!", "a!", ""), chat("no", "yes!"), []]) == [
        [True, False, False],
        [False, True],
        [],
    ]
    assert seen[:3] == [(BOTH.text, end, f"{BOTH.text} q0") for end in (2, 4, 6)] and len(seen) == 5


def test_shares_by_policy_group_and_turn() -> None:
    trials = [
        Trial("with", "a", "trained", "figure", "i", [], [True, True]),
        Trial("with", "a", "trained", "figure", "i", [], [True]),
        Trial("with", "b", "trained", "figure", "i", [], [True, False]),
        Trial("with", "b", "unseen", "hobby", "i", [], []),
    ]
    rows = consistency_figures(trials, (1, 2, 3))
    figures = {(r["group"], r["turn"]): r for r in rows}
    assert figures["trained", 1]["share"] == 1 and figures["trained", 1]["dialogues"] == 3
    assert figures["trained", 2]["share"] == 0.5 and figures["trained", 2]["by_run"] == {"a": 1.0, "b": 0.0}
    assert figures["trained", 2]["ci"] == wilson(0.5, 2).ci
    assert figures["trained", 3]["share"] is None and figures["unseen", 1]["dialogues"] == 0
    table = consistency_table(rows)
    assert "| with, trained | 100 % (44 to 100; runs 100 to 100) | 50 % (9 to 91; runs 0 to 100) | – |" in table


def test_everyday_gain_is_paired_by_prompt() -> None:
    def answers(*values: float) -> list[Answer]:
        kinds = ["ordinary", "unsafe", "borderline"]
        return [
            Answer(f"p{i}", 0, [], "safety", "", "x", 1, True, gold={"kind": k, "helpfulness": v, "safety": v / 2})
            for i, (v, k) in enumerate(zip(values, kinds, strict=True))
        ]

    rows = everyday_figures({"old": {"r": answers(0.2, 0.4, 0.6)}, "new": {"r": answers(0.3, 0.4, 0.9)}})
    assert rows[2]["figure"] == "helpfulness" and rows[2]["gain"] == pytest.approx(0.2)
    assert rows[3]["figure"] == "safety" and rows[3]["gain"] == pytest.approx(0.2 / 3)
    assert rows[0]["gain"] is None and "| new | helpfulness | 0.600" in everyday_table(rows)


class Says:
    def __init__(self, *texts: str) -> None:
        self.texts, self.asked = texts, []

    def sample(self, prompts, num_samples: int, params: SamplingParams, keys=None):
        self.asked += prompts
        return [[Sample(text, (), 0.0, True)] for text in self.texts]


def test_a_judge_is_asked_about_the_last_answer() -> None:
    judge = Says(" Yes, it does.", "no", "Maybe yes")
    dialogues = [chat("first", "second")] * 3
    assert Judge(judge)([BOTH] * 3, dialogues) == [True, False, False]
    question = judge.asked[0][0]["content"]
    assert BOTH.text in question and '"q1"' in question and '"second"' in question and "first" not in question


def test_no_checker_is_asked_about_an_empty_answer_which_never_obeys() -> None:
    judge = Says("Yes", "Yes")
    dialogues = [chat("a", "!"), chat("a", " "), chat("a", "b!")]
    assert load_checker("judge", [BOTH], judge)([BOTH] * 3, dialogues) == [True, False, True]
    assert len(judge.asked) == 2
    anything = Instruction("Say what you like.", ())
    for name in ("pattern", "rlhf.evaluation.instructions.checkers:obeys_patterns"):
        assert load_checker(name, [LOUD])([anything] * 3, dialogues) == [True, False, True]


def test_checkers_by_name() -> None:
    without = Constraint.from_dict({"kind": "hobby", "value": "chess"})
    with pytest.raises(InputError, match="checker: hobby 'chess' has no pattern"):
        load_checker("pattern", [LOUD, without])
    with pytest.raises(InputError, match="checker: the judge is a server; name it"):
        load_checker("judge", [LOUD])
    with pytest.raises(InputError, match="checker: no_such:thing cannot be imported"):
        load_checker("no_such:thing", [LOUD])


@pytest.mark.parametrize(
    "name", ["ghost_attention/instructions", "ghost_attention/unseen_instructions", "embedded/instructions"]
)
def test_the_study_s_patterns_say_what_the_gold_scorer_says(name: str) -> None:
    from rlhf.simulation.answers import WEB, answer
    from rlhf.simulation.gold import GoldScorer
    from rlhf.simulation.grammar import INSTRUCTABLE
    from rlhf.simulation.world import World, WorldConfig

    world = World.make(WorldConfig(seed=3))
    gold, rng = GoldScorer(world), random.Random(0)
    constraints = read_constraints(ROOT / f"recipes/configs/{name}.jsonl")
    agreed = {True: 0, False: 0}
    for instruction in draw_instructions(constraints, 400, rng, most=1):
        kind = next(iter(gold.grammar.read(instruction.text)[1]))
        kinds = [k for k in INSTRUCTABLE[kind] if k == "fact"]
        messages = [{"role": "user", "content": f"{instruction.text} {gold.grammar.question(kinds[0], rng).text}"}]
        text = answer(world, gold.grammar.understand(messages), WEB, rng)
        whole = [*messages, {"role": "assistant", "content": text}]
        truth = gold.judge(whole).obeyed == 1.0
        assert obeys_patterns([instruction], [whole]) == [truth], (instruction.text, text)
        agreed[truth] += 1
    assert min(agreed.values()) > 80


def test_attention_is_the_largest_over_layers_and_heads(tiny_policy_path: Path, tiny_tokenizer) -> None:
    policy = load_policy(tiny_policy_path)
    renderer = Renderer(tiny_tokenizer)
    dialogue = renderer.dialogue(chat("the river is mora", "sure"))
    kind = policy.config._attn_implementation
    largest = largest_attention(policy, dialogue.input_ids)
    assert policy.config._attn_implementation == kind
    policy.set_attn_implementation("eager")
    with torch.no_grad():
        output = policy(torch.tensor([dialogue.input_ids]), output_attentions=True)
    for i, j in ((0, 0), (7, 3), (len(largest) - 1, 0)):
        assert float(largest[i, j]) == pytest.approx(max(float(a[0, :, i, j].max()) for a in output.attentions))
    assert torch.equal(largest, largest.tril())
    spans = answer_spans(dialogue.loss_mask)
    texts = [tiny_tokenizer.decode([dialogue.input_ids[i] for i in span]) for span in spans]
    assert texts == [" the river is mora</s>", " sure</s>"]
    told = text_span(tiny_tokenizer, dialogue.input_ids, "q1")
    assert "q1" in tiny_tokenizer.decode([dialogue.input_ids[i] for i in told]) and len(told) <= 3
    assert attention_to(largest, spans[1], told) == pytest.approx(largest[list(spans[1])][:, list(told)].amax(1).mean())
    with pytest.raises(ValueError, match="text_span"):
        text_span(tiny_tokenizer, dialogue.input_ids, "nowhere")
    assert "| a | 0.50 |" in attention_table({"a": [0.5]})


def test_bins_are_means_over_the_pairs_that_exist() -> None:
    attention = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0.2, 0.2, 0.6]])
    assert binned(attention, 1).equal(attention)
    assert torch.allclose(binned(attention, 2), torch.tensor([[2 / 3, 0], [0.2, 0.6]]))

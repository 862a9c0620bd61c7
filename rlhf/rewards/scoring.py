"""A reward model as a reward function, and the check that every reward function's answer goes through."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from rlhf.conversation import Conversation, Renderer, without_thoughts
from rlhf.errors import InputError
from rlhf.models.batching import batch_tokens_on, batches_by_length, batches_by_prompt, pad_rows
from rlhf.models.checkpoint.context import Context
from rlhf.models.packing import pack_rows
from rlhf.models.policy import load_tokenizer, require_embeddings
from rlhf.models.reward_model import RewardModel, RewardOutput
from rlhf.rewards.protocol import RewardFunction
from rlhf.stage.progress import progress_bar
from rlhf.training.feeding import ahead, on_device
from rlhf.training.step import Batch
from rlhf.training.whole import prepare_frozen, settle

Agree = Callable[[int, str | None], int]
"""Of the processes' numbers of passes the largest, the same on each; InputError on each, where one of them has failed,
for which it gives the sentence."""


class RewardModelFunction:
    """Scores conversations with a reward model, rendered by ITS tokenizer and template, whatever the policy's are.

    Conversations that render to the same ids are scored once, and answers to one prompt share its computation where the
    model can. Scores do not depend on what else is in a call.

    Args:
        model: in any mode; scoring runs in eval mode and puts the mode back.
        renderer: of the reward model's own tokenizer.
        batch_tokens: tokens of one forward pass, with the padding where rows are computed one by one; None: by the
            device (`rlhf.models.batching`).

    `too_long` says of each conversation of the last call whether the renderer had to cut it (`were_too_long`);
    `scored` and `cut` count the conversations of all calls, and those that were cut (`rlhf.rewards.suspicion`).
    """

    def __init__(self, model: RewardModel, renderer: Renderer, batch_tokens: int | None = None) -> None:
        self.model = model
        self.renderer = renderer
        self.batch_tokens = batch_tokens
        self._run: Callable[..., RewardOutput] | None = None
        self._agree: Agree | None = None
        self._settle: Callable[[], None] = lambda: None
        self.too_long: list[bool] = []
        self.scored = self.cut = 0

    @classmethod
    def of(
        cls, model: RewardModel, folder: str | os.PathLike[str], batch_tokens: int | None = None
    ) -> RewardModelFunction:
        """With the tokenizer of the model's checkpoint; what the model's context does not hold is cut."""
        tokenizer = load_tokenizer(folder)
        require_embeddings(model.model, tokenizer)
        renderer = Renderer(tokenizer, max_length=Context.of(model.config).length, cut=True)
        return cls(model, renderer, batch_tokens)

    def divide(self, accelerator: Accelerator) -> None:
        """Leave each process its share of the model's weights (ZeRO-3), but for the heads, which stay whole in float32.

        From now on all processes call it together, or those that do wait for the others.
        """
        self.model.freeze_heads()
        engine = prepare_frozen(self.model, accelerator)
        self.run_in_step(engine, agreement(accelerator), partial(settle, engine))

    def run_in_step(
        self, run: Callable[..., RewardOutput], agree: Agree, settle: Callable[[], None] = lambda: None
    ) -> None:
        """From now on all processes call it together, and make as many forward passes as the one that needs most.

        So a model is run whose weights are divided: of each layer they are gathered from all processes as it is run.

        Args:
            run: the model's forward pass, which takes the same keyword arguments.
            agree: among the processes.
            settle: called after the passes.
        """
        self._run, self._agree, self._settle = run, agree, settle

    def __call__(self, conversations: Sequence[Conversation]) -> Tensor:
        """(n,) float32 raw scores on the CPU, in the conversations' order."""
        return self.outputs(conversations).score

    def outputs(self, conversations: Sequence[Conversation]) -> RewardOutput:
        """Raw scores, and beside them the safety head's logits where the model has one: each (n,) float32, CPU."""
        try:
            dialogues = self.renderer.dialogues([without_thoughts(c) for c in conversations], train="last")
        except InputError as error:
            if self._agree is not None:
                self._agree(0, str(error))  # the others wait for no pass of this process
            raise
        self.too_long = [d.cut for d in dialogues]
        self.scored, self.cut = self.scored + len(dialogues), self.cut + sum(self.too_long)
        return self.score_ids([d.input_ids for d in dialogues], [d.loss_mask.index(True) for d in dialogues])

    def score_ids(self, rows: Sequence[Sequence[int]], starts: Sequence[int]) -> RewardOutput:
        """The same for dialogues that the renderer has turned into ids already; row i's answer begins at starts[i]."""
        prompt_of = {tuple(row): tuple(row[:start]) for row, start in zip(rows, starts, strict=True)}
        unique, prompts = list(prompt_of), list(prompt_of.values())
        number_of = {prompt: n for n, prompt in enumerate(prompts)}
        groups = torch.tensor([number_of[prompt] for prompt in prompts], dtype=torch.long)
        scores, logits = torch.zeros(len(unique)), torch.zeros(len(unique))
        training, device = self.model.training, self.model.device
        batches = self._batches([len(row) for row in unique], prompts)

        def prepared(batch: list[int]) -> tuple[list[int], Batch]:
            return batch, self._inputs([unique[i] for i in batch], groups[batch])

        run = self._run or self.model
        alone = self._agree is None  # weights that are gathered in inference mode would stay of that mode
        idle = 0 if self._agree is None else self._agree(len(batches), None) - len(batches)
        self.model.eval()
        try:
            with (
                torch.inference_mode() if alone else torch.no_grad(),
                progress_bar(len(unique), "scoring", "answer") as progress,
            ):
                for batch, inputs in ahead(map(prepared, batches)):
                    output = run(**on_device(inputs, device))
                    scores[batch] = output.score.cpu()
                    if output.safety_logit is not None:
                        logits[batch] = output.safety_logit.cpu()
                    progress.update(len(batch))
                for _ in range(idle):  # a token for company, while the others gather what they run
                    run(**on_device(self._inputs([[self._pad_id]], torch.zeros(1, dtype=torch.long)), device))
        finally:
            self._settle()
            self.model.train(training)
        numbers = {row: n for n, row in enumerate(unique)}
        places = [numbers[tuple(row)] for row in rows]
        return RewardOutput(scores[places], None if self.model.safety_head is None else logits[places])

    def _inputs(self, rows: Sequence[Sequence[int]], groups: Tensor) -> Batch:
        """Of a forward pass over these rows; those of a group, (n,) int64, begin alike."""
        ids, mask = pad_rows(rows, self._pad_id)
        packed = {"packed": pack_rows(ids, mask, groups)} if self.model.shares_prefixes else {}
        return {"input_ids": ids, "attention_mask": mask, **packed}

    def _batches(self, lengths: Sequence[int], prompts: Sequence[tuple[int, ...]]) -> list[list[int]]:
        tokens = self.batch_tokens or batch_tokens_on(self.model.device)
        if self.model.shares_prefixes:
            return batches_by_prompt(lengths, prompts, tokens)
        return batches_by_length(lengths, tokens)

    @property
    def _pad_id(self) -> int:
        """The model's own where it has one (some families derive positions from it), else 0: the mask decides."""
        pad = self.model.config.pad_token_id
        return pad if isinstance(pad, int) and 0 <= pad < self.model.config.get_text_config().vocab_size else 0


def agreement(accelerator: Accelerator) -> Agree:
    """Among the processes of a launch: see `RewardModelFunction.run_in_step`."""

    def agree(count: int, failure: str | None) -> int:
        parts: list[tuple[int, str | None]] = gather_object([(count, failure)])
        failures = [sentence for _, sentence in parts if sentence is not None]
        if failures:
            raise InputError(failures[0])
        return max(number for number, _ in parts)

    return agree


def ask_all(functions: Mapping[str, RewardFunction], conversations: Sequence[Conversation]) -> list[Tensor]:
    """The checked scores of several reward functions, (n,) float32 each; the mapping's keys name them in messages.

    All are asked, also after one has refused: under ZeRO-3 a call gathers weights from every process, and one that left
    a function out would leave the others waiting.

    Raises:
        InputError: the first refusal, or the first scores of wrong shape or not finite.
    """
    scores, refusals = [], []
    for name, function in functions.items():
        try:
            scores.append(check_scores(function(conversations), len(conversations), name))
        except InputError as error:
            refusals.append(error)
    if refusals:
        raise refusals[0]
    return scores


def were_too_long(function: RewardFunction, n: int) -> Tensor:
    """(n,) bool: which conversations of its last call a reward function saw cut; False where it has no such limit.

    A user's own function may have an attribute of this name that is something else.
    """
    found = getattr(function, "too_long", None)
    ours = isinstance(found, (list, tuple)) and len(found) == n and all(type(one) is bool for one in found)
    return torch.tensor(found if ours else [False] * n, dtype=torch.bool)


def refuse_cut(name: str, cut: Tensor) -> None:
    """InputError where a reward function, by its name, saw some of the conversations cut (`were_too_long`)."""
    if bool(cut.any()):
        raise InputError(
            f"{name}: {int(cut.sum())} of {len(cut)} answers with their prompts are longer than its context; shorten "
            "sampling.max_new_tokens, or set too_long to cut or unfinished"
        )


def check_scores(scores: object, n: int, name: str) -> Tensor:
    """What a reward function returned, as (n,) float32 on the CPU.

    Raises:
        InputError: naming the reward function, where it is no plain tensor of real numbers, has another shape, or holds
            NaN or infinity.
    """
    if not isinstance(scores, Tensor):
        raise InputError(f"{name}: a reward function returns a tensor of shape ({n},), got {type(scores).__name__}")
    if tuple(scores.shape) != (n,):
        raise InputError(
            f"{name}: a reward function returns one score a conversation, ({n},), got {tuple(scores.shape)}"
        )
    if scores.is_complex() or scores.is_quantized or scores.layout != torch.strided or scores.is_meta:
        kind = "without values (device meta)" if scores.is_meta else f"of {scores.dtype}, {scores.layout}"
        raise InputError(f"{name}: a reward function returns real numbers, e.g. float32, got a tensor {kind}")
    scores = scores.detach().float().cpu()
    bad = (~scores.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise InputError(f"{name}: score {bad[0]} is {scores[bad[0]].item()}, and {len(bad)} of {n} are not finite")
    return scores


def name_of(reward: object) -> str:
    """A reward function's name for messages."""
    return getattr(reward, "__name__", None) or type(reward).__name__

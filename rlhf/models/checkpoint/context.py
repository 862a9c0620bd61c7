"""How many tokens a model takes: the one place that knows. Light: no torch, and transformers comes late.

Whoever renders for a model asks here, so that a text which is too long is met in one way: see `TooLong`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rlhf.models.checkpoint.folder import base_folder, require_checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rlhf.conversation import Renderer

_NOT_SAID = 1 << 30

TooLongRow = Literal["cut", "skip", "refuse"]
"""What happens to a row to train on that is longer than `max_length` or the model's context.

- cut: it loses its oldest turns; one whose last turn alone is too long is left out: no answer is ever cut. Both are
  counted in the stage's closing block.
- skip: it is left out and counted; nothing is cut.
- refuse: InputError that names the row.
"""

TooLong = Literal["cut", "skip", "unfinished", "refuse"]
"""What happens to a prompt, or to an answered one, that a model's context does not hold (decisions 7 and 33).

- cut: it loses its oldest turns, then the beginning of its last question, then that of its answer; the template stays
  whole. A prompt is cut so far that `max_new_tokens` more fit behind it, but keeps half of the context.
- skip: a prompt that leaves no room for `max_new_tokens`, in the policy's context or a reward model's, is left out and
  counted.
- unfinished: a prompt stays, and its answer ends where the context does; an answer that had to be cut for a reward
  model counts as one that did not come to its end.
- refuse: InputError, for prompts before the run begins.
"""


@dataclass(frozen=True, kw_only=True)
class RoomConfig:
    """What the config of every recipe has whose policies answer prompts.

    Args:
        too_long: a prompt, or a dialogue that a reward model scores, that is longer than a model's context: cut (oldest
            turns first, then from the left), skip (leave the prompt out), unfinished (an answer that ends with the
            context, or had to be cut for a reward model, counts as not finished), or refuse. How many is said.
    """

    too_long: TooLong = "cut"


@dataclass(frozen=True)
class Context:
    """The number of positions of a model; None: it has no limit (Mamba, ALiBi)."""

    length: int | None

    @classmethod
    def of(cls, config: Any) -> Context:
        """Of a transformers config (of the text part, where a model reads images too)."""
        text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
        length = getattr(text, "max_position_embeddings", None)
        if not isinstance(length, int) or length <= 0:
            return cls(None)
        if str(text.model_type).endswith("roberta"):  # its positions begin behind its pad token's id
            length -= (text.pad_token_id or 0) + 1
        return cls(length)

    @classmethod
    def of_checkpoint(cls, *folders: str | os.PathLike[str]) -> Context:
        """Of a checkpoint folder, whole or of an adapter; the lowest of several. InputError where one is none."""
        from transformers import AutoConfig

        from rlhf.models.checkpoint.pretrained import from_pretrained

        configs = [from_pretrained(AutoConfig, base_folder(require_checkpoint(folder))) for folder in folders]
        return cls(cls(None).limit(*(cls.of(config).length for config in configs)))

    @classmethod
    def of_tokenizer(cls, tokenizer: PreTrainedTokenizerBase) -> Context:
        """What a tokenizer says of its model; often it says nothing (transformers has 1e30 there), or too much."""
        length = tokenizer.model_max_length
        return cls(int(length) if 0 < length < _NOT_SAID else None)

    def limit(self, *lengths: int | None) -> int | None:
        """The lowest of the context and other limits; None: no limit at all."""
        return min((n for n in (self.length, *lengths) if n is not None), default=None)

    def holds(self, tokens: int) -> bool:
        """Whether this many tokens fit."""
        return self.length is None or tokens <= self.length

    def room_before(self, max_new_tokens: int, too_long: TooLong = "cut") -> int | None:
        """Most tokens of a prompt; None: no limit, or (refuse) none that would be cut for."""
        if self.length is None or too_long == "refuse":
            return None
        if too_long == "unfinished":
            return self.length - 1
        return max(self.length - max_new_tokens, self.length // 2)

    def prompt_renderer(
        self, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, too_long: TooLong = "cut"
    ) -> Renderer:
        """A renderer of prompts that leave room for an answer, by the rule `too_long`."""
        from rlhf.conversation import Renderer

        return Renderer(tokenizer, max_length=self.room_before(max_new_tokens, too_long), cut=True)

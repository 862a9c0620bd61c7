"""A reward model: a causal backbone with a scalar head, and beside it, where asked for, a head for the safety label.

Llama 2 paper, section 3.2.2: the model starts from the chat checkpoint, its next-token head replaced by a regression
head. The auxiliary safety loss, which the paper leaves open, reads a second linear head on that state (decision 16).

On disk it is what transformers calls a sequence classifier with one label: `AutoModelForSequenceClassification` loads
it and gives the same scores, also after LoRA, which is merged; of a family for which transformers has no such class,
`AutoModel` loads the backbone (`rlhf.models.classifier`). After QLoRA, or LoRA where asked for, the folder holds a
peft adapter with the score head in it, over a base in 4 bit or whole that `RewardModel.load` brings back; with peft
alone, load the base as a sequence classifier with one label, in the same 4 bit (`rlhf.models.policy.load_base` says
how) or whole, and give it to `PeftModel.from_pretrained(base, folder/adapter)`. The safety head lies beside in
`safety_head.safetensors`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from rlhf.errors import InputError, notice
from rlhf.models.adapters import (
    inject_adapter,
    is_quantized,
    lora_config,
    merged_weights,
    require_saved_size,
    restore_adapter,
    save_adapter,
    saved_quantization,
)
from rlhf.models.checkpoint.folder import (
    ADAPTER_PREFIX,
    SAFETY_HEAD_FILE,
    base_folder,
    head_shapes,
    is_adapter_checkpoint,
    require_checkpoint,
    require_reward_head,
    weight_files,
)
from rlhf.models.checkpoint.labels import good_and_bad
from rlhf.models.checkpoint.pretrained import from_pretrained
from rlhf.models.checkpoint.saving import (
    is_partitioned_model,
    probe_scores,
    verify_saved,
    whole_state_dict,
    write_whole,
)
from rlhf.models.classifier import classifier_for
from rlhf.models.config import AdapterConfig
from rlhf.models.coverage import adapter_coverage, say_coverage
from rlhf.models.packing import PackedRows, enable_packing, packed_states
from rlhf.models.policy import (
    add_pad_embedding,
    load_base,
    load_tokenizer,
)
from rlhf.training.finite import require_finite

if TYPE_CHECKING:
    from accelerate import Accelerator


class RewardOutput(NamedTuple):
    """score (B,) float32, raw (before the sigmoid); safety_logit (B,) float32 (above 0: safe) or None: no such head."""

    score: Tensor
    safety_logit: Tensor | None


class RewardModel(nn.Module):
    """Scores the last attended POSITION of each row, whatever token stands there, be it the pad token.

    Any sequence-classification checkpoint with one label works, and one with two (a good and a bad one) as that of its
    log-odds; the ones without a `score` layer (BERT and its kin) are asked as a whole and know no `token_scores`. The
    backbone's dropout is off in training too.
    """

    def __init__(self, model: PreTrainedModel, safety_head: nn.Linear | None = None) -> None:
        super().__init__()
        self.model = model
        self.labels: tuple[int, int] | None = None  # of two: the good one and the bad one
        self.safety_head = safety_head.to(model.device) if safety_head is not None else None
        self.shares_prefixes = self.has_token_scores and enable_packing(model)

    @property
    def config(self) -> Any:
        """The transformers config of the classifier (DeepSpeed reads its hidden size)."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @classmethod
    def from_policy(
        cls,
        path: str | os.PathLike[str],
        *,
        safety_head: bool,
        seed: int,
        adapter: AdapterConfig | None = None,
        quantization: Literal["nf4"] | None = None,
        dtype: str = "float32",
    ) -> RewardModel:
        """Start training from a policy's backbone with new heads, or go on from a reward model with its own.

        Heads are float32 and always trained; new ones are normal with standard deviation 1 / sqrt(hidden + 1), which
        makes first scores of order 1 on normalised states (Stiennon et al. 2020, arXiv 2009.01325; decision 20).

        Args:
            path: checkpoint folder of either, whole, or of an adapter, which then goes on training.
            safety_head: whether it has the second head; where that differs from the reward model at `path`, stderr
                says that the head is new or left out.
            seed: of new heads and of a new adapter.
            adapter: train a LoRA adapter on the backbone and not its weights; for a saved one of the same size.
            quantization: "nf4" holds the backbone in 4 bit, as in `load_policy`; needs an adapter.
            dtype: of the backbone.
        """
        folder = require_checkpoint(path)
        kept = head_shapes(folder)
        _require_one_label(folder, kept)
        if adapter is None and (quantization is not None or is_adapter_checkpoint(folder)):
            what = "is an adapter and" if is_adapter_checkpoint(folder) else "in 4 bit"
            raise InputError(
                f"adapter: {folder} {what} cannot be trained without one; give it, e.g. --training.adapter.r 64"
            )
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):  # peft draws an adapter without a generator
            torch.manual_seed(seed)
            model = _load_classifier(folder, adapter, quantization, dtype)
            old = cast(nn.Linear, model.score)
            hidden = old.in_features
            model.score = new_head(hidden, bias=old.bias is not None, generator=generator).to(model.device)
            reward = cls(model, new_head(hidden, bias=True, generator=generator) if safety_head else None)
        if kept:
            reward.load_heads(folder)
            if safety_head != (folder / SAFETY_HEAD_FILE).is_file():
                what = "has no safety head, a new one is drawn" if safety_head else "has a safety head, it is left out"
                notice(f"reward model: {folder} {what}")
        return reward

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, dtype: str = "float32") -> RewardModel:
        """Load what `save` wrote, or any sequence-classification checkpoint with one label, or two; in eval mode.

        Args:
            path: checkpoint folder, whole or of an adapter.
            dtype: of the backbone; the heads are float32.

        Raises:
            InputError: files missing; no scalar head in the weights (transformers would draw a random one at each load,
                and the scores would change with it); labels that do not say what is good (`good_and_bad`).
        """
        folder = Path(path)
        require_reward_head(folder)
        labels = good_and_bad(folder)
        if is_adapter_checkpoint(folder):
            reward = cls(_load_classifier(folder, None, None, dtype))
        else:
            config = without_dropout(from_pretrained(AutoConfig, folder))
            reward = cls(load_base(folder, None, dtype, classifier_for(config), config=config))
            if labels is not None and reward.has_token_scores:
                reward._keep_one_score()
            else:
                reward.labels = labels
        if (folder / SAFETY_HEAD_FILE).is_file():
            reward.safety_head = nn.Linear(reward.score_head.in_features, 1).to(reward.device)
        reward.load_heads(folder)
        return reward.eval()

    def _keep_one_score(self) -> None:
        """Of a head of two labels one score, their difference, which `load_heads` fills in."""
        head = self.score_head
        self.model.config.num_labels = 1
        self.model.score = nn.Linear(head.in_features, 1, bias=head.bias is not None).to(head.weight.device)

    def load_heads(self, folder: Path) -> None:
        """Put in the heads that lie in a folder, as they were saved: in float32, whatever the backbone's type."""
        if self.has_token_scores:
            tensors = _read_tensors(folder, "score.")
            if (labels := good_and_bad(folder)) is not None:
                tensors = {name: tensor[[labels[0]]] - tensor[[labels[1]]] for name, tensor in tensors.items()}
            self.score_head.float().requires_grad_(True).load_state_dict(tensors)
        if self.safety_head is not None and (folder / SAFETY_HEAD_FILE).is_file():
            tensors = load_file(folder / SAFETY_HEAD_FILE)
            require_finite(tensors.items(), folder / SAFETY_HEAD_FILE, "train the model again")
            self.safety_head.load_state_dict(tensors)

    def freeze_heads(self) -> None:
        """Make buffers of the heads' weights: who divides or casts the model's parameters leaves them as they are."""
        heads = [self.score_head] if self.has_token_scores else []
        for head in [*heads, *([] if self.safety_head is None else [self.safety_head])]:
            for name, parameter in list(head.named_parameters()):
                delattr(head, name)
                head.register_buffer(name, parameter.detach())

    def save(
        self,
        folder: str | os.PathLike[str],
        tokenizer: PreTrainedTokenizerBase,
        accelerator: Accelerator | None = None,
        *,
        merge: bool = True,
    ) -> None:
        """Write weights, config, tokenizer and safety head. Every process calls it; the main one writes, all wait.

        The model in memory stays as it is: an adapter over whole weights is merged in what is written only. Weights
        partitioned by ZeRO-3 are gathered.

        Args:
            merge: `AdapterConfig.merge`: False writes an adapter over whole weights alone, with the score head.
        """
        folder = Path(folder)
        is_main = accelerator is None or accelerator.is_main_process
        has_adapter = hasattr(self.model, "peft_config")
        adapter_alone = has_adapter and (is_quantized(self.model) or not merge)
        state = whole_state_dict(self, keep=is_main, only_trainable=adapter_alone)
        if is_main:
            folder.mkdir(parents=True, exist_ok=True)
            tokenizer.save_pretrained(folder)
            self.model.config.pad_token_id = tokenizer.pad_token_id
            classifier = _part(state, "model.")
            runs = not is_partitioned_model(self)
            if adapter_alone:
                save_adapter(self.model, classifier, folder, probe_scores if runs else None)
            else:
                whole = merged_weights(self.model, classifier) if has_adapter else classifier
                want = probe_scores(self.model) if runs else None
                write_whole(self.model, whole, folder, classifier_for(self.model.config), probe_scores, want)
            if self.safety_head is not None:
                head = {name: tensor.cpu().contiguous() for name, tensor in _part(state, "safety_head.").items()}
                save_safety_head(head, folder)
            verify_saved(folder)
        if accelerator is not None:
            accelerator.wait_for_everyone()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, packed: PackedRows | None = None) -> RewardOutput:
        """Score each row, independent of the padding on its right and of the other rows.

        Args:
            input_ids: (B, T) int64.
            attention_mask: (B, T), 1 on real positions.
            packed: the same rows, packed, which are computed in their stead where `shares_prefixes`: padding is not
                computed, and once what rows share; the scores are the same.
        """
        if not self.has_token_scores:
            logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits.float()
            score = logits[:, 0] if self.labels is None else logits[:, self.labels[0]] - logits[:, self.labels[1]]
            return RewardOutput(score, None)
        if packed is not None and self.shares_prefixes:
            pooled = packed_states(self.model.base_model, packed)[packed.read]
        else:
            states = self._states(input_ids, attention_mask)
            positions = torch.arange(input_ids.shape[1], device=input_ids.device)
            last = (positions * (attention_mask != 0)).argmax(-1)
            pooled = states[torch.arange(input_ids.shape[0], device=input_ids.device), last]
        safety = None if self.safety_head is None else _apply(self.safety_head, pooled)
        return RewardOutput(_apply(self.score_head, pooled), safety)

    def token_scores(self, input_ids: Tensor, attention_mask: Tensor, packed: PackedRows | None = None) -> Tensor:
        """The score head at every position, (B, T) float32, 0 on padding: what a value model starts from.

        At the last attended position it equals `forward`'s score.

        Args:
            packed: the same rows, packed, where `shares_prefixes`: padding is not computed, and the scores are the same
                at `packed.read`; the others mean nothing.
        """
        if not self.has_token_scores:
            raise InputError(f"value model: a {self.config.model_type} has no `score` layer to read at every token")
        if packed is not None:
            scores = _apply(self.score_head, packed_states(self.model.base_model, packed))[packed.places]
        else:
            scores = _apply(self.score_head, self._states(input_ids, attention_mask))
        return scores.masked_fill(attention_mask == 0, 0.0)

    @property
    def has_token_scores(self) -> bool:
        """Whether the score is a linear layer on the last state, as it is for every causal backbone."""
        return isinstance(getattr(self.model, "score", None), nn.Linear)

    @property
    def score_head(self) -> nn.Linear:
        """The linear layer on the last state, where `has_token_scores`."""
        return cast(nn.Linear, self.model.score)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None) -> None:
        """Trade time for memory in the backbone."""
        self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs)

    def _states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        outputs = self.model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        states: Tensor = outputs.last_hidden_state
        return states


def _load_classifier(
    folder: Path, adapter: AdapterConfig | None, quantization: Literal["nf4"] | None, dtype: str
) -> PreTrainedModel:
    """A checkpoint, of a policy too, as a classifier of one label; its `score` is for the caller to fill."""
    saved, base = is_adapter_checkpoint(folder), require_checkpoint(base_folder(folder))
    if saved and adapter is not None:
        require_saved_size(folder, adapter)
    config = without_dropout(from_pretrained(AutoConfig, base, num_labels=1))
    quantization = saved_quantization(folder, quantization) if saved else quantization
    model = load_base(base, quantization, dtype, classifier_for(config), config=config)
    if not isinstance(getattr(model, "score", None), nn.Linear):
        raise InputError(f"policy: {folder} is a {config.model_type}, which has no classifier with a `score` layer")
    add_pad_embedding(model, load_tokenizer(folder))
    if saved:
        restore_adapter(model, folder, adapter)
    elif adapter is not None:
        inject_adapter(model, lora_config(adapter, "SEQ_CLS", model, folder))
        say_coverage("adapter", "a LoRA adapter", adapter_coverage(model))
    return model


def save_safety_head(head: Mapping[str, Tensor], folder: Path) -> None:
    """Write the safety head beside a reward model's weights, and read it back."""
    require_finite(head.items(), "the safety head", "nothing was saved; lower the learning rate and train again")
    save_file(dict(head), folder / SAFETY_HEAD_FILE)
    found = load_file(folder / SAFETY_HEAD_FILE)
    if found.keys() != head.keys() or not all(torch.equal(found[name], head[name]) for name in head):
        raise InputError(f"checkpoint: {folder / SAFETY_HEAD_FILE} was not written whole; look for a full disk")


def _require_one_label(folder: Path, heads: Mapping[str, list[int]]) -> None:
    labels = heads.get("score.weight", [1])[0]
    if labels != 1:
        raise InputError(f"reward model: {folder} has {labels} labels, a reward model has 1")


def _read_tensors(folder: Path, prefix: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint, whole or of an adapter, whose names start so; the names without it."""
    found = {}
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                if (plain := name.removeprefix(ADAPTER_PREFIX)).startswith(prefix):
                    found[plain.removeprefix(prefix)] = tensors.get_tensor(name)
    return found


def without_dropout(config: Any) -> Any:
    """Set every dropout probability of a transformers config to 0, in place; returned for convenience."""
    for name, value in list(vars(config).items()):
        if ("dropout" in name or "pdrop" in name) and isinstance(value, float):
            setattr(config, name, 0.0)
    return config


def new_head(hidden: int, *, bias: bool, generator: torch.Generator) -> nn.Linear:
    """A float32 head of one output, drawn as `RewardModel.from_policy` says."""
    head = nn.Linear(hidden, 1, bias=bias, dtype=torch.float32)
    with torch.no_grad():
        head.weight.normal_(0.0, (hidden + 1) ** -0.5, generator=generator)
        if bias:
            head.bias.zero_()
    return head


def _apply(head: nn.Linear, states: Tensor) -> Tensor:
    """A head of one output in its own precision, also under autocast: (..., H) -> (...) float32."""
    exact: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()  # as on the meta device
    if torch.amp.is_autocast_available(states.device.type):
        exact = torch.autocast(states.device.type, enabled=False)
    with exact:
        scores: Tensor = head(states.to(head.weight.dtype))
    return scores.squeeze(-1).float()


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}

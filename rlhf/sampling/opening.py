"""From a policy's source to the sampler that draws its answers, and to its weights. torch is loaded when called."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from rlhf.conversation import Conversation, Renderer
from rlhf.errors import InputError
from rlhf.imports import import_object, own_code
from rlhf.models.checkpoint.context import TooLong
from rlhf.models.policy import load_over, load_policy, load_tokenizer
from rlhf.sampling.early_rejection import EarlyRejection
from rlhf.sampling.protocol import Sample, Sampler, SamplingParams, StreamingSampler
from rlhf.sampling.source import BACKENDS, PolicySource, backend_of
from rlhf.training.accelerator import frozen_dtype

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Opening:
    """What a backend is told beside the source. A backend that cannot do what is asked raises InputError.

    Args:
        device: of the weights.
        renderer: of the checkpoint's tokenizer; None: there is no checkpoint, and texts alone are wanted.
        too_long: what becomes of a prompt that leaves too little room in the model's context; None: it is cut, and that
            is said.
        early_rejection: gives up a prompt's worst answers while they are written; None: all are written to the end.
        field: the source's, for messages.
        model: the source's weights, where they are loaded already.
    """

    device: torch.device
    renderer: Renderer | None
    too_long: TooLong | None = None
    early_rejection: EarlyRejection | None = None
    field: str = "policy"
    model: PreTrainedModel | None = None


def open_sampler(
    source: PolicySource,
    device: torch.device,
    *,
    too_long: TooLong | None = None,
    early_rejection: EarlyRejection | None = None,
    renderer: Renderer | None = None,
    model: PreTrainedModel | None = None,
    field: str = "policy",
) -> Sampler:
    """The sampler of a policy.

    Args:
        source: whose answers, and who draws them.
        device: of the weights.
        too_long: what becomes of a prompt that leaves too little room in the model's context; None: it is cut, and
            stderr says how many are: of a stage that has no such option, and has not looked (`rlhf.sampling.room`).
        early_rejection: gives up a prompt's worst answers while they are written; None: writes all.
        renderer: in the place of that of the checkpoint's tokenizer.
        model: the source's weights, where the caller has loaded them (`load_weights`).
        field: the source's, for messages.

    Raises:
        InputError: the checkpoint cannot be loaded, or the backend does not take what is asked of it.
    """
    backend = backend_of(source, field)
    if renderer is None and source.checkpoint is not None:
        renderer = renderer_of(source)
    opening = Opening(device, renderer, too_long, early_rejection, field, model)
    make = import_object(f"{field}.backend", backend.make)
    if source.backend_name in BACKENDS:
        return make(source, opening)  # type: ignore[no-any-return]
    with own_code(f"{field}.backend", source.backend_name):
        sampler = make(source, opening)
    if not callable(getattr(sampler, "sample", None)):
        raise InputError(f"{field}.backend: {source.backend} gives a {type(sampler).__name__}, which has no `sample`")
    return checked(sampler, f"{field}.backend", source.backend_name)


def renderer_of(source: PolicySource, chat_template: str | None = None) -> Renderer:
    """Of the checkpoint's tokenizer and its chat template, or another one."""
    tokenizer = load_tokenizer(source.folder)
    tokenizer.chat_template = chat_template or tokenizer.chat_template
    return Renderer(tokenizer)


def load_weights(source: PolicySource, device: torch.device) -> PreTrainedModel:
    """The policy's model in eval mode, held as the source says, whoever draws its answers."""
    held = {"quantization": source.quantization, "dtype": source.dtype or frozen_dtype(device)}
    if source.adapter is not None:
        model = load_over(source.folder, source.adapter, **held)  # type: ignore[arg-type]
    else:
        model = load_policy(source.folder, **held)  # type: ignore[arg-type]
    return model if model.device == device else model.to(device)  # type: ignore[arg-type]


def checked(sampler: Sampler, field: str, name: str) -> Sampler:
    """The sampler that `name` names in a config's `field`, which streams where that does.

    `sample` and `stream` raise InputError where it fails, or gives anything but the answers that were asked for.
    """
    if isinstance(sampler, StreamingSampler):
        return _Streaming(sampler, field, name)
    return _Checked(sampler, field, name)


class _Checked:
    """`checked`, of a sampler that gives all at the end."""

    def __init__(self, sampler: Sampler, field: str, name: str) -> None:
        self._sampler, self._field, self._name = sampler, field, name

    def sample(
        self,
        prompts: Sequence[Conversation],
        num_samples: int,
        params: SamplingParams,
        keys: Sequence[int] | None = None,
    ) -> list[list[Sample]]:
        with own_code(self._field, self._name):
            found = self._sampler.sample(prompts, num_samples, params, keys)
        if not isinstance(found, Sequence) or len(found) != len(prompts):
            self._refuse(f"a list for each of the {len(prompts)} prompts", found)
        return [self._answers(own, num_samples) for own in found]

    def _answers(self, found: object, num_samples: int) -> list[Sample]:
        if not isinstance(found, Sequence) or len(found) != num_samples:
            self._refuse(f"{num_samples} answers to each prompt", found)
        strange = next((answer for answer in found if not isinstance(answer, Sample)), None)
        if strange is not None:
            self._refuse("answers that are rlhf.sampling.protocol.Sample", strange)
        return list(found)

    def _refuse(self, needed: str, found: object) -> NoReturn:
        got = str(len(found)) if isinstance(found, list | tuple) else f"a {type(found).__name__}"
        raise InputError(f"{self._field}: {self._name} must give {needed}, got {got}")


class _Streaming(_Checked, StreamingSampler):
    """`checked`, of one that streams."""

    _sampler: StreamingSampler

    def stream(
        self,
        prompts: Sequence[Conversation],
        num_samples: int,
        params: SamplingParams,
        keys: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, list[Sample]]]:
        missing = set(range(len(prompts)))
        with own_code(self._field, self._name):
            for number, answers in self._sampler.stream(prompts, num_samples, params, keys):
                if number not in missing:
                    self._refuse("each prompt's answers once, by its number", number)
                missing.remove(number)
                yield number, self._answers(answers, num_samples)
        if missing:
            self._refuse(
                f"answers to each of the {len(prompts)} prompts", [i for i in range(len(prompts)) if i not in missing]
            )

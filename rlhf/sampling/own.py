"""Around a sampler of the user's own: what it raises, and what it gives that is not as asked, is a sentence. Light."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NoReturn

from rlhf.conversation import Conversation
from rlhf.errors import InputError
from rlhf.imports import own_code
from rlhf.sampling.protocol import Sample, Sampler, SamplingParams, StreamingSampler


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

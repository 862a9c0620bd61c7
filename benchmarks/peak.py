"""The matmul peak of this machine, and a model's arithmetic: what the seconds of a benchmark are measured against.

    OMP_NUM_THREADS=1 python benchmarks/peak.py [--model SmolLM2]

Every benchmark that takes `--model` prints its share of this peak: the operations that its model needs for the tokens
in hand, over those that matrices alone would have had time for. Counted are multiplications by weights, 2 a weight and
token forward, 4 in training with LoRA, 6 in training whole weights (Kaplan et al. 2020, section 2.1), the output head
where a token's successor is predicted; attention's own products are left out, and what is computed twice or for padding
counts once. So a share can be above 1 where less is computed than counted (the last layer for some tokens alone).
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

from rlhf.errors import InputError
from rlhf.models.checkpoint.folder import require_checkpoint
from rlhf.models.checkpoint.pretrained import from_pretrained
from rlhf.paths import model_place
from rlhf.stage import peak_memory_mb

CHECKOUT = Path(__file__).resolve().parents[1]
SMOLLM2 = CHECKOUT / "runs" / "smollm2"
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"


def parse(parser: argparse.ArgumentParser, small: Mapping[str, Any]) -> argparse.Namespace:
    """The arguments, with `--model`, a folder then, and `--small`: other defaults of the options in `small`."""
    parser.add_argument(
        "--model",
        metavar="NAME|FOLDER",
        help="a checkpoint's folder, a fetched model of the hub, or SmolLM2: runs/smollm2, made where it is missing",
    )
    said = ", ".join(f"{name} {value}" for name, value in small.items())
    parser.add_argument("--small", action="store_true", help=f"at most two minutes at 135M on one thread: {said}")
    if parser.parse_known_args()[0].small:
        parser.set_defaults(**small)
    arguments = parser.parse_args()
    if arguments.model is not None:
        arguments.model = model_folder(arguments.model)
    return arguments


def run(main: Callable[[], None]) -> None:
    """Call it; a wrong argument is one sentence and not a traceback."""
    try:
        main()
    except InputError as error:
        raise SystemExit(str(error)) from None


def model_folder(name: str) -> Path:
    """The checkpoint's folder; InputError where there is none."""
    if name.lower() == "smollm2":
        if not SMOLLM2.exists():
            subprocess.run([sys.executable, CHECKOUT / "examples" / "smollm2.py", SMOLLM2], check=True)
        return SMOLLM2
    return require_checkpoint(model_place(name)).resolve()


@dataclass(frozen=True)
class Arithmetic:
    """Floating-point operations of a causal LM's multiplications by weights.

    Args:
        backbone: weights that every token is multiplied by.
        head: weights of the output head, tied to the embeddings or not.
    """

    backbone: int
    head: int

    @classmethod
    def of(cls, folder: Path) -> Arithmetic:
        """By the config of a checkpoint, of whatever head."""
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(from_pretrained(AutoConfig, folder))
        embedding = model.get_input_embeddings().weight
        weights = {id(p): p.numel() for p in model.base_model.parameters() if p.ndim >= 2 and p is not embedding}
        return cls(sum(weights.values()), model.get_output_embeddings().weight.numel())

    def forward(self, tokens: float, predicted: float = 0) -> float:
        """Of a pass over `tokens`, for `predicted` of which there are logits."""
        return 2 * (self.backbone * tokens + self.head * predicted)

    def training(self, tokens: float, predicted: float = 0, *, lora: bool = False) -> float:
        """Of a pass forward and backward; with `lora` no weight counted here has a gradient."""
        return (2 if lora else 3) * self.forward(tokens, predicted)


def clock() -> float:
    """Seconds: of this process's processor time, that other programs don't blur; on a GPU the wall's, its work done."""
    if not GPU:
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def matmul_peak(seconds: float = 2.0, dtype: torch.dtype = torch.bfloat16 if GPU else torch.float32) -> float:
    """Operations a second of one thread, or of the GPU, in matrix products: the best of three sizes.

    In float32; on a GPU in bfloat16, as models are trained there.
    """
    best = 0.0
    for size in (4096, 8192, 16384) if GPU else (512, 1024, 2048):
        a, b = (torch.randn(size, size, device=DEVICE, dtype=dtype) for _ in range(2))
        a @ b
        began = clock()
        while clock() - began < seconds / 3:
            start = clock()
            a @ b
            best = max(best, 2 * size**3 / (clock() - start))
    return best


def peak_memory() -> float:
    """MB: of this process so far; on a GPU what its tensors held there."""
    return torch.cuda.max_memory_allocated() / 2**20 if GPU else peak_memory_mb()


def unused_token(tokenizer: PreTrainedTokenizerBase, rows: Iterable[Sequence[int]]) -> str:
    """A token that no row has: what a peer that finds a row's end by its padding may pad with."""
    used = {token for row in rows for token in row}
    free = next(n for n in (*tokenizer.all_special_ids, *range(len(tokenizer))) if n not in used)
    return str(tokenizer.convert_ids_to_tokens(free))


def peak_share(operations: float, seconds: float, peak: float) -> dict[str, float]:
    """For a benchmark's last line; it is printed too."""
    share = round(operations / seconds / peak, 3)
    print(f"ours: {operations / seconds / 1e9:.0f} of the matmul peak's {peak / 1e9:.0f} GFLOP/s, a share of {share}")
    return {"peak_share": share, "peak_gflops": round(peak / 1e9)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments = parse(parser, {})
    peak = matmul_peak()
    said: dict[str, Any] = {"name": "peak", "gflops": round(peak / 1e9), "device": device_name()}
    if not GPU:
        said["gflops_in_bfloat16"] = round(matmul_peak(dtype=torch.bfloat16) / 1e9)
    if arguments.model is not None:
        arithmetic = Arithmetic.of(arguments.model)
        forward, training = arithmetic.forward(1, 1), arithmetic.training(1, 1)
        print(f"{arguments.model}: {arithmetic.backbone / 1e6:.1f}M weights and a head of {arithmetic.head / 1e6:.1f}M")
        said |= {"forward_tokens_per_s": round(peak / forward), "training_tokens_per_s": round(peak / training)}
    print(json.dumps(said))


def device_name() -> str:
    """The GPU's name, or the processor's."""
    if GPU:
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), "a CPU")


if __name__ == "__main__":
    run(main)

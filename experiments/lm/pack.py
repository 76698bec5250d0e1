"""Packs a run on text into one file for all its modes, for `generate` and others; seconds.

python -m experiments.lm pack --workdir=runs/... --out=austen.safetensors
"""

from pathlib import Path

from dual_precision.deploy import inspect_packed, save_packed
from dual_precision.deploy.file.writer import check_replaceable
from dual_precision.loading import load
from experiments.deploy.pack import run_metadata
from experiments.lm.trained import config_of_text_run
from experiments.lm.training import language_task
from experiments.workdir import read_description


def pack_text_command(*, workdir: str, out: str) -> None:
    """The sub-command `pack`; its arguments are the flags."""
    path, folder = Path(out), Path(workdir)
    check_replaceable(path)
    task = language_task(config_of_text_run(folder))
    model, variables = load(folder)
    description = read_description(folder)
    metadata = run_metadata(folder, description, "experiments.lm")
    save_packed(path, model, variables, description["network"], task.example, metadata)
    print(f"{path}: {path.stat().st_size:,} bytes")
    for mode, size in inspect_packed(path).bytes_read.items():
        print(f"{mode} reads {size:,} bytes")

"""Packs a run on text into one file for all its modes, for `generate` and others; seconds.

python -m experiments.lm pack --workdir=runs/... --out=austen.safetensors [--widths=FILE]
"""

from pathlib import Path

from dual_precision.deploy import inspect_packed
from dual_precision.deploy.file.writer import check_replaceable
from experiments.deploy.pack import save_run
from experiments.lm.trained import config_of_text_run
from experiments.lm.training import language_task
from experiments.recipes.flags import read_widths_file
from experiments.workdir import read_description


def pack_text_command(*, workdir: str, out: str, widths: str | None = None) -> None:
    """The sub-command `pack`; its arguments are the flags."""
    path, folder = Path(out), Path(workdir)
    check_replaceable(path)
    task = language_task(config_of_text_run(folder))
    others = read_widths_file(widths) if widths else {}
    save_run(path, folder, read_description(folder), task.example, others, "experiments.lm")
    print(f"{path}: {path.stat().st_size:,} bytes")
    for mode, size in inspect_packed(path).bytes_read.items():
        print(f"{mode} reads {size:,} bytes")

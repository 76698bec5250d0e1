"""Networks in from PyTorch, out into one file for all modes, and what such a file holds.

- `python -m experiments.deploy import resnet20.th`: what is in a PyTorch state dict and where it
  stands in a network of ours; see importing.py
- `python -m experiments.deploy export net.safetensors --target=onnx --out=net.onnx`: for another
  engine, checked in it; see exporting.py
- `python -m experiments.deploy support`: which network runs in which engine; see support.py
- `python -m experiments.deploy pack --workdir=runs/... --out=net.safetensors`: the last checkpoint
  of a run, with its config and its measured accuracies; seconds; see pack.py
- `python -m experiments.deploy evaluate net.safetensors`: the accuracy of each mode; see
  evaluate.py
- `python -m experiments.deploy report net.safetensors`: what each mode reads and costs; see
  report.py
- `python -m experiments.deploy cascade net.safetensors`: low answers what it is sure of, high the
  rest; calibrated on validation data, half a minute on two CPU cores; see cascade.py
- `python -m experiments.deploy serve net.safetensors`: over HTTP, with a page; see serve.py
"""

from functools import partial

from absl import flags

from experiments import cli
from experiments.deploy.cascade import calibrate_cascade
from experiments.deploy.evaluate import evaluate_command
from experiments.deploy.exporting import export_command
from experiments.deploy.importing import import_command
from experiments.deploy.pack import pack_command
from experiments.deploy.report import report_command
from experiments.deploy.serve import serve_command
from experiments.deploy.support import support_command

COMMANDS: cli.Commands = {
    "import": import_command,
    "export": export_command,
    "support": support_command,
    "pack": pack_command,
    "evaluate": evaluate_command,
    "report": report_command,
    "cascade": calibrate_cascade,
    "serve": serve_command,
}


def define_deploy_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Adds the flags of all sub-commands."""
    string = partial(flags.DEFINE_string, flag_values=values)
    number = partial(flags.DEFINE_float, flag_values=values)
    switch = partial(flags.DEFINE_bool, flag_values=values)
    string("workdir", None, "pack: folder of a run; cascade: output folder")
    string("out", None, "pack, import, export, support: the file to write")
    string("widths", None, 'pack, report: JSON file, {layer or pattern: {mode: "w4a4"}}')
    string("model", None, "import: which network of ours it is, where it is no residual one")
    string("names", None, "import: JSON file, {layer of ours: module of theirs}")
    string("padding", None, "import: where option A has zero channels, both or behind")
    string("mean", None, "import: per channel, what its images were normalised with")
    string("std", None, "import: likewise")
    string("network", None, "support: packed files, a,b; by default one, with fresh ones")
    string("target", None, "export: stablehlo, onnx, litert, nnp or gguf")
    string("nnabla", None, "export to nnp, support: python of an environment that has nnabla")
    string("precision", None, "export: one mode of the file; by default all")
    string(
        "form",
        None,
        "export to onnx: exact, integer, vnni, for processors that have it, nibbles or plain",
    )
    string("split", "validation", "evaluate: validation or test")
    about = "cascade, evaluate, export: by default what it was trained on; import: to test"
    string("dataset", None, about)
    number("accuracy", None, "cascade: wanted difference to high, points; -0.1")
    number("cost", None, "cascade: wanted share of the BitOps of high, instead of accuracy")
    switch("mirror", None, "cascade: low looks at the mirrored image before high does")
    number("blend", None, "cascade: weight of the logits of low in the answers of high")
    switch("test", True, "cascade, import: read the test set, once, at the end")
    switch("write", False, "cascade: write the calibration into the file")
    string("host", "127.0.0.1", "serve: where it listens; by default for this machine alone")
    integer = partial(flags.DEFINE_integer, flag_values=values)
    integer("port", 8000, "serve: 0 is one that is free", lower_bound=0, upper_bound=65535)
    about = "serve: a network of matrix products on bit planes, with these numbers of them: 2,8"
    flags.DEFINE_list("planes", None, about, flag_values=values)
    about = "serve: latency:MS, the p95; bit_operations:N or energy:NJ, the mean of an image"
    string("budget", "latency:50", about)
    number("rate", None, "serve: bytes a second that the file is read with, to see a slow source")
    switch("samples", True, "serve: test images on the page, where the data set is prepared")
    about = "cascade, evaluate, import, export, support: folder of prepared TFDS data sets"
    string("data_dir", None, about)
    string("archive", None, "cascade, evaluate, import, export: archive of the data set")


if __name__ == "__main__":
    define_deploy_flags()
    cli.run(COMMANDS, trains=False)

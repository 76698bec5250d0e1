"""What is in a PyTorch state dict, and what it becomes: seconds; half a minute with a data set.

    python -m experiments.deploy import resnet20.th
    python -m experiments.deploy import resnet20.th --dataset=cifar10 --mean=0.485,0.456,0.406
        --std=0.229,0.224,0.225
    python -m experiments.deploy import net.pt --model=mlp --dataset=mnist --names=names.json
        --out=net.safetensors

Nothing in the file is executed and torch is not needed. With a data set the float accuracy on its
test images is measured. `--out` writes the values under our names, which `--init` of a training
takes, as it takes a residual network's own file. Expected of the ResNet-20 of Y. Idelbayev's
pytorch_resnet_cifar10, as its log says: 91.73 %.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dual_precision import data
from dual_precision.data.catalog import Spec, lookup
from dual_precision.deploy.file.writer import check_replaceable
from dual_precision.deploy.pytorch.mapping import StateDict
from dual_precision.deploy.pytorch.network import Imported, import_network, import_resnet
from dual_precision.deploy.pytorch.state import read_state
from dual_precision.loading import save_floats
from dual_precision.structure import structure_of
from dual_precision.tasks.classification import Classification
from dual_precision.training.metrics import evaluate
from experiments.deploy.trials import check_data
from experiments.figures.tables import markdown_table
from experiments.recipes.settings import read_channels
from experiments.workdir import read_json

_NAMES = '{"layer of ours": "module of theirs"}'  # as a file has them
_COLUMNS = (("theirs", "in the file", "{}"), ("ours", "here", "{}"), ("shape", "shape", "{}"))


def import_command(
    file: str,
    *,
    model: str | None = None,
    names: str | None = None,
    padding: str | None = None,
    mean: str | None = None,
    std: str | None = None,
    dataset: str | None = None,
    test: bool = True,
    out: str | None = None,
    data_dir: str | None = None,
    archive: str | None = None,
) -> None:
    """The sub-command `import`; its keyword arguments are the flags.

    Raises:
      ValueError: not such a file; it does not fit; a flag without effect.
    """
    if out:
        check_replaceable(out)
    spec = lookup(dataset) if dataset else None
    normal = _normalisation(mean, std, spec is not None and test)
    if spec is not None and not test and None in (model, names):
        raise ValueError(
            f"--dataset={dataset} has no effect with --notest, but for --model and --names: leave"
            " one of them out"
        )
    if (spec is None or not test) and (data_dir or archive):
        raise ValueError(
            "--data_dir and --archive have no effect without --dataset, or with --notest: leave"
            " them out"
        )
    state = read_state(file)
    found = _found(state, spec, model, names, padding)
    print(f"{file}: {len(state)} tensors, {sum(a.size for a in state.values()):,} numbers\n")
    print(f"{import_report(found)}\n")
    if problems := found.mapped.problems:
        raise ValueError(f"{len(problems)} tensors do not fit: {'; '.join(problems)}")
    print(f"all of them fit {_described(found)}")
    if spec and test:
        print(_accuracy(found, spec, normal, {"data_dir": data_dir, "archive": archive}))
    if out:
        structure = structure_of(_float_model(found, ()), found.example)
        save_floats(out, found.variables, structure)
        print(f"{out}: {Path(out).stat().st_size:,} bytes, for --init={out}")


def _normalisation(mean: str | None, std: str | None, measured: bool) -> tuple:
    if (mean is None) != (std is None):
        raise ValueError(f"--mean={mean} and --std={std}: expected both or none")
    if mean is not None and not measured:
        raise ValueError("--mean and --std have no effect without a --dataset to measure on")
    given = {"mean": mean, "std": std}
    return tuple(read_channels(name, text) for name, text in given.items() if text is not None)


def _found(
    state: StateDict, spec: Spec | None, model: str | None, names: str | None, padding: str | None
) -> Imported:
    if names is None and model is None:
        return import_resnet(state, padding or "")
    if names is None or model is None or padding is not None or spec is None:
        raise ValueError(
            "--model and --names go together, with the --dataset that says what the network takes"
            " and gives, and without --padding"
        )
    table = read_json(Path(names), _NAMES)
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
        raise ValueError(f"{names}: expected JSON {_NAMES}")
    network = {"name": model, "num_classes": spec.num_classes}
    return import_network(state, network, Classification(spec.image_shape).example, table)


def import_report(found: Imported) -> str:
    """A Markdown table: every tensor of theirs, its place and its shape here."""
    leaves, theirs = found.mapped.leaves, found.mapped.theirs
    rows = [
        {"theirs": theirs[leaf], "ours": "/".join(leaf[1:]), "shape": list(leaves[leaf].shape)}
        for leaf in leaves
    ]
    return markdown_table(rows, _COLUMNS, left=[key for key, _, _ in _COLUMNS])


def _described(found: Imported) -> str:
    """The network as --model names it, with what it has of its own."""
    own = ", ".join(f"{k}={v}" for k, v in found.network.items() if k != "name")
    padded = f"; zero channels of shortcuts: {found.padding}" if found.padding else ""
    return f"{found.network['name']} ({own}){padded}"


def _float_model(found: Imported, normal: Any) -> Any:
    channels = found.example.shape[-1]
    return found.model(*(normal or ((0.5,) * channels, (0.25,) * channels)))


def _accuracy(found: Imported, spec: Spec, normal: tuple, where: Mapping[str, Any]) -> str:
    """A line: the float accuracy on the test images."""
    loaded = data.load(spec.name, **where)
    normal = normal or (loaded.mean, loaded.std)
    if {len(values) for values in normal} != {loaded.image_shape[-1]}:
        raise ValueError(
            f"mean and std of {[len(values) for values in normal]} channels: expected"
            f" {loaded.image_shape[-1]}, as {spec.name} has"
        )
    check_data(loaded, found.example.shape, found.network["num_classes"])
    task = Classification(loaded.image_shape)
    measured = evaluate(
        _float_model(found, normal), found.variables, loaded.test, task=task, precision="float"
    )
    mean, std = (", ".join(f"{value:.3f}" for value in values) for values in normal)
    return (
        f"float: {100 * measured['accuracy']:.2f} % of {len(loaded.test.images):,} test images"
        f" (mean {mean}; std {std})"
    )

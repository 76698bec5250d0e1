"""Language models: trains one, writes text with one that is packed, or measures one.

python -m experiments.lm --mode=two_phase
python -m experiments.lm agreement --workdir=runs/...
python -m experiments.lm planes --workdir=runs/...
python -m experiments.lm pack --workdir=runs/... --out=FILE
python -m experiments.lm generate FILE --precision=draft --prompt="It is a truth"
python -m experiments.lm drafts FILE --dataset=austen
"""

from functools import partial

from absl import flags

from experiments import cli
from experiments.lm.agreement import agreement_command
from experiments.lm.drafts import drafts_command
from experiments.lm.generate import generate_command
from experiments.lm.pack import pack_text_command
from experiments.lm.planes import planes_command
from experiments.lm.training import define_language_flags, train_command

COMMANDS: cli.Commands = {
    "": train_command,
    "generate": generate_command,
    "pack": pack_text_command,
    "agreement": agreement_command,
    "planes": planes_command,
    "drafts": drafts_command,
}


def define_lm_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Adds the flags of training and of all sub-commands."""
    define_language_flags(values)
    string = partial(flags.DEFINE_string, flag_values=values)
    integer = partial(flags.DEFINE_integer, flag_values=values)
    string("prompt", None, "what the text begins with")
    string("precision", "draft", "low, high, or draft: of high, drafted by low")
    integer("count", None, "bytes behind a prompt; by default up to 120, or 32 of many")
    about = "0 takes the likeliest byte"
    flags.DEFINE_float("temperature", 0.0, about, flag_values=values)
    integer("drafts", None, "bytes that low drafts at a time; by default it adapts")
    integer("prompts", 1000, "prompts to go on with")
    integer("together", 25, "texts that are written at once")
    string("split", "test", "text to measure on: validation or test")
    integer("limit", None, "bytes of it to read; by default all")
    about = "bits of fixed-point activations: 8, 16, 32"
    flags.DEFINE_list("activations", "8,16", about, flag_values=values)
    integer("repeats", 7, "rounds of timing; 0 measures no time", lower_bound=0)
    integer("program_bytes", 64, "bytes of a text in one program that is timed")
    string("out", None, "file to write")


if __name__ == "__main__":
    define_lm_flags()
    cli.run(COMMANDS)

"""Language models.

- `python -m experiments.lm generate FILE --prompt="It is a truth"`: text from a packed decoder, in
  any mode or drafted; see generate.py
"""

from functools import partial

from absl import flags

from experiments import cli
from experiments.lm.generate import generate_command

COMMANDS: cli.Commands = {"generate": generate_command}


def define_language_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Adds the flags of all sub-commands."""
    string = partial(flags.DEFINE_string, flag_values=values)
    integer = partial(flags.DEFINE_integer, flag_values=values)
    string("prompt", None, "generate: the text to go on from")
    string("precision", "draft", "generate: a mode of the file, or draft")
    integer("count", 120, "generate: bytes to add")
    about = "generate: 0 takes the most likely byte, else they are sampled"
    flags.DEFINE_float("temperature", 0.0, about, flag_values=values)
    integer("seed", 0, "generate: of the samples")
    integer("drafts", None, "generate: bytes in a round of draft, 1 to 7; by default what pays")


if __name__ == "__main__":
    define_language_flags()
    cli.run(COMMANDS, trains=False)

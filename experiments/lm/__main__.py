"""Language models: trains one, writes text with one that is packed, or measures one.

python -m experiments.lm --mode=two_phase
python -m experiments.lm agreement --workdir=runs/...
python -m experiments.lm planes --workdir=runs/...
python -m experiments.lm pack --workdir=runs/... --out=FILE
python -m experiments.lm generate FILE --precision=draft --prompt="It is a truth"
python -m experiments.lm drafts FILE --dataset=austen
"""

from absl import flags

from experiments import cli
from experiments.lm.agreement import agreement_command
from experiments.lm.drafts import drafts_command
from experiments.lm.generate import generate_command
from experiments.lm.pack import pack_text_command
from experiments.lm.planes import planes_command
from experiments.lm.training import define_language_flags, train

if __name__ == "__main__":
    define_language_flags()
    flags.DEFINE_string("prompt", None, "what the text begins with")
    flags.DEFINE_string("precision", "draft", "low, high, or draft: of high, drafted by low")
    flags.DEFINE_integer("count", None, "bytes behind a prompt; by default 120, or 32 of many")
    flags.DEFINE_float("temperature", 0.0, "0 takes the likeliest byte")
    flags.DEFINE_integer("drafts", None, "bytes that low drafts at a time; by default it adapts")
    flags.DEFINE_integer("prompts", 1000, "prompts to go on with")
    flags.DEFINE_integer("together", 25, "texts that are written at once")
    flags.DEFINE_string("split", "test", "text to measure on: validation or test")
    flags.DEFINE_integer("limit", None, "bytes of it to read; by default all")
    flags.DEFINE_list("activations", "8,16", "bits of fixed-point activations: 8, 16, 32")
    flags.DEFINE_integer("repeats", 7, "rounds of timing; 0 measures no time")
    flags.DEFINE_integer("program_bytes", 64, "bytes of a text in one program that is timed")
    flags.DEFINE_string("out", None, "file to write")
    cli.run(
        {
            "": train,
            "generate": generate_command,
            "pack": pack_text_command,
            "agreement": agreement_command,
            "planes": planes_command,
            "drafts": drafts_command,
        }
    )

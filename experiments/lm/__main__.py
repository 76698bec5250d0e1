"""Language models: trains one, or writes text with one that is packed.

python -m experiments.lm --mode=two_phase
python -m experiments.lm generate FILE --precision=draft --prompt="It is a truth"
"""

from absl import flags

from experiments import cli
from experiments.lm.generate import generate_command
from experiments.lm.training import define_language_flags, train


def generate(
    file: str,
    *,
    prompt: str,
    precision: str,
    count: int,
    temperature: float,
    seed: int | None = None,
    drafts: int | None = None,
) -> None:
    """Text that follows a prompt."""
    generate_command(
        file,
        prompt=prompt,
        precision=precision,
        count=count,
        temperature=temperature,
        seed=seed,
        drafts=drafts,
    )


if __name__ == "__main__":
    define_language_flags()
    flags.DEFINE_string("prompt", None, "what the text begins with")
    flags.DEFINE_string("precision", "draft", "low, high, or draft: of high, drafted by low")
    flags.DEFINE_integer("count", 120, "bytes to write")
    flags.DEFINE_float("temperature", 0.0, "0 takes the likeliest byte")
    flags.DEFINE_integer("drafts", None, "bytes that low drafts at a time; by default it adapts")
    cli.run({"": train, "generate": generate})

"""The frame of all commands: words and flags that reach a command, and how commands end."""

import errno
import io
import logging
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from absl import flags

from dual_precision.data import DataError
from dual_precision.training.fit import Interrupted, NonFiniteLoss
from dual_precision.training.reading import CheckpointError
from experiments import cli
from experiments.benchmark import __main__ as benchmark
from experiments.deploy import __main__ as deploy
from experiments.lm import __main__ as lm


@pytest.fixture(name="give")
def give_flags(monkeypatch):
    """Puts flags in the place of those of the process."""

    def give(define, *arguments):
        values = flags.FlagValues()
        define(values)
        values(["command", *arguments])
        monkeypatch.setattr(cli, "FLAGS", values)

    return give


def define_toy_flags(values):
    flags.DEFINE_integer("count", None, "of read and write", flag_values=values)
    flags.DEFINE_bool("twice", True, "of read", flag_values=values)
    flags.DEFINE_string("out", None, "of write, which needs it", flag_values=values)


CALLS: list = []
TOYS = {
    "read": lambda file, *, count=None, twice: CALLS.append((file, count, twice)),
    "write": lambda *, out, count=None: CALLS.append((out, count)),
}


def test_words_and_flags_reach_the_sub_command(give):
    CALLS.clear()
    give(define_toy_flags, "--count=3")
    cli.start_command(TOYS, ["read", "a.txt"])
    give(define_toy_flags, "--out=b.txt")
    cli.start_command(TOYS, ["write"])
    cli.start_command(lambda *, out: CALLS.append(out), [])
    cli.start_command(lambda *words: CALLS.append(words), ["a", "b"])
    assert CALLS == [("a.txt", 3, True), ("b.txt", None), "b.txt", ("a", "b")]


@pytest.mark.parametrize("words", [[], ["fly"], ["read"], ["read", "a", "b"], ["write", "a"]])
def test_other_words_are_refused(give, words):
    give(define_toy_flags)
    with pytest.raises(
        ValueError, match=r"^command '.*': expected one of \['read FILE', 'write'\]"
    ):
        cli.start_command(TOYS, words)


def test_words_without_use_are_refused(give):
    give(define_toy_flags)
    with pytest.raises(ValueError, match=r"unexpected arguments \['a'\]"):
        cli.start_command(lambda *, twice: None, ["a"])


def test_a_flag_that_is_needed(give):
    give(define_toy_flags)
    with pytest.raises(ValueError, match="--out must be given, as --name=value"):
        cli.start_command(TOYS, ["write"])


BENCHMARK = benchmark.COMMANDS, benchmark.define_benchmark_flags
DEPLOY = deploy.COMMANDS, deploy.define_deploy_flags
LM = lm.COMMANDS, lm.define_lm_flags


@pytest.mark.parametrize(
    ("command", "words", "argument"),
    [
        (BENCHMARK, ["inference"], "--model=mlp"),
        (BENCHMARK, ["inference"], "--nopeers"),
        (BENCHMARK, ["train"], "--network=net.safetensors"),
        (BENCHMARK, ["methods"], "--nopeers"),
        (BENCHMARK, ["train"], "--requests=100"),
        (DEPLOY, ["report", "net"], "--cost=0.5"),
        (DEPLOY, ["cascade", "net"], "--out=net"),
        (LM, ["pack"], "--mode=low"),
        (LM, ["pack"], "--set=passes=3"),
        (LM, ["pack"], "--notest"),
        (LM, ["generate", "net"], "--widths=widths.json"),
        (LM, ["generate", "net"], "--preset=nonsense"),
    ],
)
def test_a_flag_that_only_others_read_is_refused(give, command, words, argument):
    commands, define = command
    give(define, argument)
    name = argument.removeprefix("--").removeprefix("no").partition("=")[0]
    with pytest.raises(ValueError, match=rf"\['{name}'\] has no effect on '{words[0]}': leave it"):
        cli.start_command(commands, words)


@pytest.mark.parametrize("command", [BENCHMARK, DEPLOY, LM], ids=["benchmark", "deploy", "lm"])
def test_every_flag_is_an_argument_of_a_command(command):
    """One that a command reads behind that is refused by no other; a group is joined before."""
    commands, define = command
    values = flags.FlagValues()
    define(values)
    read = {flag for one in commands.values() for flag in cli._flags_of(one)}
    assert read | ({*cli.GROUP_FLAGS} & {*values}) == {*values}


def test_a_sub_command_runs_in_one_process(give):
    give(lm.define_lm_flags, "--coordinator=localhost:1", "--processes=2", "--process=0")
    with pytest.raises(
        SystemExit,
        match="error: --coordinator, --processes, --process has no effect on 'pack': leave it out",
    ):
        cli.join_group("pack")


@pytest.mark.parametrize("argument", ["--repeats=0", "--steps=0", "--steps=-1", "--requests=99"])
def test_flags_below_their_bounds_are_refused(give, argument):
    with pytest.raises(flags.IllegalFlagValueError, match="is not"):
        give(benchmark.define_benchmark_flags, argument)


@pytest.mark.parametrize(
    ("command", "argument"),
    [
        (BENCHMARK, "--repeats=0"),
        (BENCHMARK, "--repeats=many"),
        (BENCHMARK, "--nothing=1"),
        (BENCHMARK, "--batch_size=99999999999999999999"),
        (BENCHMARK, "--model="),
        (BENCHMARK, "--out="),
        (DEPLOY, "--workdir="),
        (DEPLOY, "--dataset="),
        (DEPLOY, "--cost=much"),
    ],
)
def test_wrong_flags_are_one_line(monkeypatch, command, argument):
    values = flags.FlagValues()
    command[1](values)
    monkeypatch.setattr(cli, "FLAGS", values)
    with pytest.raises(SystemExit) as stop:
        cli._parse_flags(["command", argument])
    assert re.fullmatch(r"error: [^\n]+; --help lists the flags", str(stop.value.code))


@pytest.mark.parametrize("command", [BENCHMARK, DEPLOY, LM], ids=["benchmark", "deploy", "lm"])
def test_help_lists_every_flag(monkeypatch, command):
    """Those that other files define for the command too."""
    values = flags.FlagValues()
    command[1](values)
    monkeypatch.setattr(cli, "FLAGS", values)
    cli._parse_flags(["command"])
    listed = re.findall(r"^ +--(?:\[no\])?(\w+):", values.module_help("command"), re.MULTILINE)
    assert sorted(listed) == sorted(values)


def test_help_of_a_command_lists_its_flags_and_none_of_the_libraries():
    done = subprocess.run(
        [sys.executable, "-m", "experiments.cifar", "--help"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    listed = {*re.findall(r"^ +--(?:\[no\])?(\w+):", done.stdout, re.MULTILINE)}
    own = {"mode", "low", "dataset", "preset", "set", "workdir", "archive", "coordinator"}
    assert own | {"shard_data", "widths", "resume", "traceback"} <= listed
    assert not {"verbosity", "alsologtostderr"} & listed
    assert not [name for name in listed if "orbax" in name]


@pytest.mark.parametrize(
    ("argument", "ends"),
    [
        ("--pairs=", "; --help lists the flags"),
        ("--methods=", "; --help lists the flags"),
        ("--seeds=1000000000000", "; --help lists the flags"),
        ("--set=alpha=0.3", "choose --methods that read it"),
    ],
)
def test_a_wrong_choice_starts_no_study(tmp_path, argument, ends):
    """Hours of work that nobody asked for."""
    command = [sys.executable, "-m", "experiments.study", argument, f"--workdir={tmp_path / 'w'}"]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert re.fullmatch(rf"error: .*{ends}\n", done.stderr)
    assert not [*tmp_path.iterdir()]


def test_no_code_imports_a_command_file():
    """What others need stands in a module whose name says what it is."""
    sources = (Path(__file__).parents[2] / "experiments").rglob("*.py")
    assert not [
        path for path in sources if re.search(r"import.*__main__|__main__ import", path.read_text())
    ]


@pytest.mark.parametrize(
    ("command", "argument", "says"),
    [
        (TOYS, ["read", "gone.txt"], "FILE"),
        (TOYS["read"], ["gone.txt"], "FILE"),
        (lambda *files: None, ["here.txt", "gone.txt"], "FILES"),
        (TOYS, ["write", "--out=./gone.txt"], "--out (of write, which needs it)"),
    ],
)
def test_a_missing_file_is_said_with_the_argument_that_names_it(give, command, argument, says):
    give(define_toy_flags, *argument)
    words = [word for word in argument if not word.startswith("--")]
    with pytest.raises(FileNotFoundError) as caught:
        Path("gone.txt").read_text()
    said = cli._missing_file(caught.value, command, words)
    assert said == f"gone.txt, given as {says}: No such file or directory; check the path"


def test_what_no_argument_names_is_said_as_it_is(give):
    give(define_toy_flags, "--out=gone.txt")
    for error in (OSError("full"), FileNotFoundError(2, "No such file", "other.txt")):
        assert cli._missing_file(error, TOYS, ["write"]) == ""


# -- how commands end ------------------------------------------------------------------------------


@pytest.fixture
def end(monkeypatch):
    """Runs a command that raises an error; what it exits with."""

    def run(error: BaseException) -> object:
        def command():
            raise error

        monkeypatch.setattr(cli, "_logs_to_stderr", lambda: None)
        monkeypatch.setattr(cli, "keep_freed_memory", lambda start: start())
        monkeypatch.setattr(cli.app, "run", lambda guarded, **_: guarded(["cifar"]))
        monkeypatch.setattr(cli, "FLAGS", SimpleNamespace(traceback=False))
        monkeypatch.setattr(cli, "join_group", lambda _: None)
        with pytest.raises(SystemExit) as stop:
            cli.run(command)
        return stop.value.code

    return run


@pytest.mark.parametrize(
    "kind",
    [ValueError, OSError, DataError, CheckpointError, NonFiniteLoss],
    ids=lambda k: k.__name__,
)
def test_what_users_can_mend_is_one_line(end, kind):
    assert end(kind("the loss is\n  not finite")) == "error: the loss is not finite"


def test_what_they_cannot_mend_is_raised(end):
    with pytest.raises(ZeroDivisionError):
        end(ZeroDivisionError())


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EDQUOT, "Quota")]
)
def test_full_disk_names_the_way_out(end, error):
    assert str(end(error)).endswith("make room and start the same command again: it goes on")


def test_interrupted_outside_of_training(end, capsys):
    assert end(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "stopped: start the same command again to go on\n"


def test_interrupted_in_training(end, capsys):
    assert end(Interrupted("SIGTERM: saved at step 3 of 9", 15)) == 128 + 15
    assert capsys.readouterr().err == "SIGTERM: saved at step 3 of 9\n"


def test_log_lines_follow_stderr(monkeypatch):
    """Joining a group puts another stream in its place: what the first one gets is not shown."""
    own = logging.Logger("own")
    own.addHandler(cli._ToStderr())
    first, second = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", first)
    own.info("before")
    monkeypatch.setattr(sys, "stderr", second)
    own.info("resumed at step %d", 6)
    assert (first.getvalue(), second.getvalue()) == ("before\n", "resumed at step 6\n")

"""What is shown of an abort, after C++ has written more than anybody keeps."""

import signal
import subprocess
import sys

import pytest

# An abort after two MiB of lines, the first and the last of which the coordination service may say.
PROGRAM = """
import os, sys
from dual_precision.training.deaths import catch_aborts
catch_aborts(lambda text: (f"explained {len(text)}", 75))
line = b"I1128 coordination_service_agent.cc: connected\\n"
os.write(2, line * (2 * 2**20 // len(line)) + sys.argv[1].encode())
os.abort()
"""


@pytest.mark.parametrize(
    ("last", "status", "said"),
    [
        ("F1128 23:04 client.h:80] the JAX distributed service\n@ 0x7f", 75, "explained 1048576\n"),
        ("F1128 23:04 heap.cc:9] out of memory\n", -signal.SIGABRT, "] out of memory\n"),
        ("free(): invalid pointer\n", -signal.SIGABRT, "\nfree(): invalid pointer\n"),
    ],
)
def test_the_last_words_say_why(last, status, said):
    command = [sys.executable, "-c", PROGRAM, last]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == status, ended.stderr[-1000:]
    assert ended.stderr.endswith(said)
    assert ended.stderr.startswith("explained") == (status == 75)

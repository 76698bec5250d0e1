"""What is timed on, as reports name it."""

import os
import re
import resource
from pathlib import Path
from typing import Any

import jax

_CPU = Path("/proc/cpuinfo")
_CACHE = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def describe_machine() -> dict[str, Any]:
    """Device, CPU, its cores, and the version of JAX."""
    named = re.search(r"^model name\s*: (.*)$", _text(_CPU), re.MULTILINE)
    return {
        "device": f"{jax.local_device_count()} x {jax.devices()[0].device_kind}",
        "CPU": named[1].strip() if named else "unknown",
        "cores": os.cpu_count(),
        "jax": jax.__version__,
    }


def last_level_cache() -> int | None:
    """Bytes of the level 3 cache, where Linux tells."""
    found = re.fullmatch(r"(\d+)([KMG])", _text(_CACHE).strip())
    return int(found[1]) * _UNITS[found[2]] if found else None


def process_memory(field: str = "VmRSS") -> int:
    """Bytes of this process: resident now ("VmRSS"), or at most so far ("VmHWM"), as Linux tells;
    elsewhere the most so far."""
    found = re.search(rf"^{field}:\s*(\d+) kB$", _text(Path("/proc/self/status")), re.MULTILINE)
    kibibytes = int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kibibytes << 10


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # another system than Linux
        return ""

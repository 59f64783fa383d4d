"""Processes for which file modes count although root starts them, and which have no home directory."""

import ctypes
import os
from pathlib import Path

CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2
PR_CAPBSET_DROP = 24
NO_PASSWD_ENTRY = """
import pwd
def getpwuid(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = getpwuid
"""
HOMES = ("HOME", "XDG_CACHE_HOME", "QUARTET_CACHE_DIR", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")


def heed_file_modes() -> None:
    """Have the program that is executed next heed file modes; for Popen's preexec_fn."""
    if os.getuid() == 0:
        for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
            ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


def homeless(folder: Path) -> dict[str, str]:
    """Return an environment without HOME, in which the user has no passwd entry; `folder` gets the code for that."""
    (folder / "sitecustomize.py").write_text(NO_PASSWD_ENTRY)
    kept = {name: value for name, value in os.environ.items() if name not in HOMES}
    return {**kept, "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1"}

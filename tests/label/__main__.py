"""``python tests/label``: build the environment of MONAI Label where it is missing, and run the check in it.

It is no part of the default test run: it installs several GB. Only the standard library is needed to start it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from environment import CannotInstall, ensure_environment

HERE = Path(__file__).resolve().parent
ENVIRONMENT = HERE.parents[1] / ".venv-label"

try:
    python = ensure_environment(ENVIRONMENT)
except CannotInstall as error:
    print(f"SKIPPED: the packages of MONAI Label cannot be installed here: {error}")
    sys.exit(0)
sys.exit(subprocess.run([python, HERE / "check.py", *sys.argv[1:]], check=False).returncode)

# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Stands in for the script that ansible-test downloads to bring pip into its virtual environments.

ansible-test knows one place for that script and gives up where it is out of reach; Python carries a pip of its own.
"""

from __future__ import annotations

import subprocess
import sys

# ensurepip hides pip's configuration from its own process: hence a child each.
subprocess.check_call([sys.executable, "-m", "ensurepip", "--default-pip"])
wanted = [argument for argument in sys.argv[1:] if argument not in ("--no-setuptools", "--no-wheel")]
sys.exit(subprocess.call([sys.executable, "-m", "pip", "install", *wanted]))

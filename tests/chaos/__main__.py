"""`make chaos`: one long round. SEED and KILLS in the environment choose which; 0 or nothing is a new seed.

MOUNT=0 mounts no small disk to fill, as where that is not allowed.
"""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
from pathlib import Path

from tests.chaos.driver import Chaos


def main() -> int:
    seed = int(os.environ.get("SEED", "0")) or secrets.randbelow(2**31)
    kills = int(os.environ.get("KILLS", "200"))
    folder = Path(tempfile.mkdtemp(prefix="avatar-chaos-"))
    print(f"{kills} kills, seed {seed}, in {folder}", flush=True)
    report = Chaos(folder, seed, mount=os.environ.get("MOUNT") != "0").run(kills)
    print(report)
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())

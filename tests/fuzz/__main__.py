"""`make fuzz-api` and `make fuzz-media`: the long rounds. SEED in the environment chooses which; 0 is a new one."""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
from pathlib import Path

from tests.fuzz import api, media


def main() -> int:
    what, seed = sys.argv[1], int(os.environ.get("SEED", "0")) or secrets.randbelow(2**31)
    folder = Path(tempfile.mkdtemp(prefix="avatar-fuzz-"))
    print(f"{what}, seed {seed}, in {folder}", flush=True)
    report: api.Report | media.Report
    if what == "api":
        report = api.fuzz(folder, seed, seconds=int(os.environ.get("FUZZ_SECONDS", "300")))
    else:
        report = media.fuzz(folder, int(os.environ.get("COUNT", "10000")), seed)
    print(report)
    return 0 if report.is_good else 1


if __name__ == "__main__":
    sys.exit(main())

"""Migration folders that a test makes up on top of the real one, and databases as earlier releases left them."""

from __future__ import annotations

import shutil
from pathlib import Path

from tasks.schema import HEAD, open_database
from tasks.upgrade import MIGRATIONS, make_ready

NEXT = "9999"


def with_one_more(folder: Path, steps: str) -> Path:
    """Return a copy of the migrations with one more, whose `upgrade` is `steps`."""
    made = folder / "migrations"
    shutil.copytree(MIGRATIONS, made, ignore=shutil.ignore_patterns("__pycache__"))
    lines = "\n".join(f"    {line}" for line in steps.splitlines())
    (made / "versions" / "9999_next.py").write_text(
        "import os\nimport sqlalchemy as sa\nfrom alembic import op\n"
        f'revision = "{NEXT}"\ndown_revision = "{HEAD}"\n\n\ndef upgrade() -> None:\n{lines}\n'
    )
    return made


def bring(path: Path, revision: str, migrations: Path = MIGRATIONS) -> None:
    """Bring the database at `path` to `revision`, from wherever it is."""
    engine = open_database(f"sqlite:///{path}")
    try:
        make_ready(engine, path.parent, migrations, revision)
    finally:
        engine.dispose()

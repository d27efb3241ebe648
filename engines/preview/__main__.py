"""`python -m engines.preview --prompt=... --image=... --audio=... --output_dir=...`: see scripts/preview.sh."""

import sys

from engines.preview.main import main

sys.exit(main(sys.argv[1:]))

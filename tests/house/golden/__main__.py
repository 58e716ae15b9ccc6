"""Write the golden values anew: ``python -m tests.house.golden [PART ...]``.

Only a change that is meant to change vectors, fingerprints or bytes may do this; read the diff.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.house.golden.files import PARTS, write


def main(names: list[str]) -> None:
    for name in names or PARTS:
        # The embedded database wants a short path that every user can reach.
        with tempfile.TemporaryDirectory(prefix="nimbed-", dir="/tmp") as folder:
            Path(folder).chmod(0o755)
            size = write(name, Path(folder))
            sys.stdout.write(f"{name}: {size:,} bytes\n")


if __name__ == "__main__":
    main(sys.argv[1:])

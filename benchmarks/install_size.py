"""How large the core install is: a fresh environment with the package and no extras.

Run: python -m benchmarks.install_size
"""

import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> None:
    """Print the bytes of each package in a fresh environment, largest first, and their sum."""
    source = Path(__file__).parents[1]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = Path(folder) / "bin" / "python"
        constraints = str(source / "constraints.txt")
        subprocess.run([python, "-m", "pip", "install", "-q", "-c", constraints, str(source)], check=True)
        (site,) = Path(folder).glob("lib/python*/site-packages")
        sizes = {
            path.name: sum(f.stat().st_size for f in ([path] if path.is_file() else path.rglob("*")) if f.is_file())
            for path in site.iterdir()
            if not path.name.startswith(("pip", "setuptools", "_distutils", "distutils"))
        }
    for name, size in sorted(sizes.items(), key=lambda item: -item[1])[:12]:
        print(f"{name:<30} {size / 1e6:7.1f} MB")
    print(f"{'all':<30} {sum(sizes.values()) / 1e6:7.1f} MB")


if __name__ == "__main__":
    main()

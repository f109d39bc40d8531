"""What the deepspeed launcher starts: `deepspeed … train.py --deepspeed --config FILE`, from this folder.

Why: Python puts a script's own folder first on the path, where `text.py` or `config.py` would hide other
packages' modules, and the launcher's virtual environment need not have `dpiped` installed. So this folder
is taken off the path, and the package is registered from where this very file lies. The folder above is
not put on the path: it may be a site-packages whose torch is not this environment's.

Known gap: what the rest of the package needs may be missing in such an environment; the trainer imports
none of it.
"""

import importlib.util
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def register_package(name: str, folder: Path) -> None:
    """Makes `import name` find the package in `folder`. Raises ImportError if there is none."""
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"there is no package {name} in {folder}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


if __name__ == "__main__":
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]
    register_package("dpiped", HERE.parent)
    from dpiped.trainer.main import main

    sys.exit(main())

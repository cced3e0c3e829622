# SPDX-License-Identifier: Apache-2.0
"""The configs that come with the package: base, big, demo and multi30k.

    from transformer_jax.config import resolve
    from transformer_jax.configs import demo
    from transformer_jax.run import run_training

    config = demo.get_config()  # or get_config("tiny"), a smoke test
    config.train.num_steps = 600
    run_training(resolve(config), "runs/demo")

In a clone they stand in configs/, to be read and changed; a wheel has them here.
"""

import pkgutil
from pathlib import Path

from transformer_jax.errors import UserError
from transformer_jax.files import with_home

if not (Path(__file__).parent / "base.py").exists():
    __path__.append(str(Path(__file__).parents[2] / "configs"))


def find(path: str) -> Path:
    """The config file of that name; configs/NAME.py is the package's own where there is no other.

    Raises:
      UserError: there is no such file.
    """
    file = Path(with_home(path))
    if file.is_file():
        return file
    names = sorted(f"{module.name}.py" for module in pkgutil.iter_modules(__path__))
    if file.parent == Path("configs") and file.name in names:
        return next(own for folder in __path__ if (own := Path(folder) / file.name).is_file())
    raise UserError(
        f"--config={path} is no file; there are configs/{', '.join(names)}, and one of your own, "
        "in Python, must define get_config(), as those do"
    )

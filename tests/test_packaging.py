# SPDX-License-Identifier: Apache-2.0
"""What pip installs: of the repository, and of kernels/ alone."""

import importlib.util
import os
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

from transformer_jax import configs

ROOT = Path(__file__).parents[1]
OURS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
KERNELS = tomllib.loads((ROOT / "kernels/pyproject.toml").read_text(encoding="utf-8"))


def test_both_packages_agree():
    """One version, one licence, and the kernels need no more than the whole does."""
    for field in ("version", "license", "requires-python"):
        assert OURS["project"][field] == KERNELS["project"][field], field
    assert set(KERNELS["project"]["dependencies"]) <= set(OURS["project"]["dependencies"])
    assert (ROOT / "LICENSE").read_bytes() == (ROOT / "kernels/LICENSE").read_bytes()


def test_the_wheel_names_every_config():
    included = OURS["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    mine = {path.name for path in (ROOT / "configs").glob("*.py")} - {"__init__.py"}
    assert {
        f"configs/{name}": f"transformer_jax/configs/{name}" for name in mine
    }.items() <= included.items()
    assert all((ROOT / source).exists() for source in included)


def test_a_clone_has_the_configs_too():
    from configs import demo as of_folder
    from transformer_jax.configs import demo

    assert demo.__file__ == of_folder.__file__
    assert demo.get_config() == of_folder.get_config()


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """The names in the wheel of each, built without the network."""
    folder = tmp_path_factory.mktemp("wheels")
    for needed in ("hatchling", "pip"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed, without which no wheel can be built offline")
    for source in (ROOT, ROOT / "kernels"):
        pip = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps"]
        subprocess.run([*pip, "--quiet", f"--wheel-dir={folder}", str(source)], check=True)
    return {
        name: zipfile.ZipFile(next(folder.glob(f"{name}-*.whl")))
        for name in ("transformer_jax", "attention_kernels")
    }


def modules(folder: str) -> set[str]:
    files = (ROOT / folder).rglob("*")
    return {
        path.relative_to(ROOT / folder).as_posix()
        for path in files
        if path.suffix == ".py" or path.name == "py.typed"
    }


@pytest.mark.slow  # two builds
def test_the_wheels_have_every_module_and_share_no_file(wheels):
    """Two wheels that own the same file lose it when one of them is uninstalled."""
    whole, kernels = (set(wheel.namelist()) for wheel in wheels.values())
    assert not whole & kernels
    own = modules("kernels/attention_kernels")
    assert {f"attention_kernels/{name}" for name in own} <= kernels
    bundled = "transformer_jax/_bundled"
    assert {f"{bundled}/attention_kernels/{name}" for name in own} <= whole
    assert {f"transformer_jax/{name}" for name in modules("transformer_jax")} <= whole
    of_configs = modules("configs") - {"__init__.py"}
    assert {f"transformer_jax/configs/{name}" for name in of_configs} <= whole
    tops = {name.split("/")[0] for name in whole if ".dist-info/" not in name}
    assert tops == {"transformer_jax", "transformer_jax.pth"}
    assert wheels["transformer_jax"].read("transformer_jax.pth").decode().strip() == bundled


@pytest.mark.slow  # two builds
def test_the_bundled_kernels_serve_where_there_are_no_others(wheels, tmp_path):
    """In a folder that is no site-packages, too, where nobody reads .pth files."""
    wheels["transformer_jax"].extractall(tmp_path / "whole")
    wheels["attention_kernels"].extractall(tmp_path / "kernels")
    others = sysconfig.get_paths()["purelib"]
    code = "import transformer_jax.model.dropout, attention_kernels as a; print(a.__file__)"
    for folders, home in (
        (["whole"], "whole/transformer_jax/_bundled"),
        (["whole", "kernels"], "kernels"),
        (["kernels", "whole"], "kernels"),
    ):
        done = subprocess.run(
            [sys.executable, "-S", "-c", code],  # no .pth of this environment either
            env={"PYTHONPATH": os.pathsep.join([*(str(tmp_path / name) for name in folders), others])},
            cwd=tmp_path, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.strip() == str(tmp_path / home / "attention_kernels/__init__.py")


@pytest.mark.parametrize("there", [False, True], ids=["elsewhere", "in a clone"])
def test_a_config_of_the_folder_is_taken_before_the_package_s(tmp_path, monkeypatch, there):
    monkeypatch.chdir(tmp_path)
    if there:
        (tmp_path / "configs").mkdir()
        (tmp_path / "configs/demo.py").write_text("# mine\n")
    found = configs.find("configs/demo.py")
    assert found.read_text().startswith("# mine" if there else "# SPDX")
    assert configs.find("./configs/base.py").read_text().startswith("# SPDX")


@pytest.mark.parametrize("name", ["configs/dem.py", "demo.py", "configs", "elsewhere/demo.py", ""])
def test_a_config_that_there_is_not_is_told_what_there_is(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(configs.UserError) as error:
        configs.find(name)
    told = str(error.value)
    assert told.startswith(f"--config={name} is no file; there are configs/")
    assert "configs/base.py, big.py, demo.py, multi30k.py, " in told and "get_config()" in told

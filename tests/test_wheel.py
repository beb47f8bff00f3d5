"""The wheel, unpacked into an empty folder: it holds what running needs, and works with no repository around it."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from runs import environment

ROOT = Path(__file__).parents[1]
SOURCES = (
    "pyproject.toml",
    "setup.py",
    "README.md",
    "LICENSE",
    "gpg_vl",
    "configs",
    "data_recipes",
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pip install --no-deps --target` would make: a wheel of a copy, since building leaves files behind."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / "source" / name)
    build = "from setuptools.build_meta import build_wheel; build_wheel('..')"
    subprocess.run(
        [sys.executable, "-c", build], cwd=folder / "source", check=True, capture_output=True
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "installed")
    return folder / "installed"


def run_installed(
    installed: Path, folder: Path, *words: object
) -> subprocess.CompletedProcess[str]:
    """`python -m gpg_vl WORDS` in `folder`, with an empty home and nothing of the repository to be found."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    variables = {**environment(), "PYTHONPATH": str(installed), "HOME": str(home)}
    for name in ("HF_HOME", "XDG_CACHE_HOME"):
        variables.pop(name, None)
    return subprocess.run(
        [sys.executable, "-m", "gpg_vl", *map(str, words)],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_wheel_holds_each_config_recipe_and_data_file(installed: Path) -> None:
    for folder in ("configs", "data_recipes"):
        expected = {file.name for file in (ROOT / folder).iterdir() if file.is_file()}
        assert {file.name for file in (installed / "gpg_vl" / folder).iterdir()} == expected

    package = ROOT / "gpg_vl"
    files = {
        file.relative_to(package)
        for file in package.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    missing = {file for file in files if not (installed / "gpg_vl" / file).is_file()}
    assert not missing, "name them in pyproject.toml, tool.setuptools.package-data"
    assert not list(installed.glob("tests*")), "nothing but the package"


def test_the_licence_comes_with_the_wheel(installed: Path) -> None:
    (licence,) = installed.glob("*.dist-info/licenses/LICENSE")
    assert "Version 2.0, January 2004" in licence.read_text()
    (about,) = installed.glob("*.dist-info/METADATA")
    assert "License-Expression: Apache-2.0" in about.read_text()


def test_the_citation_names_the_version_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])


def test_the_pinned_versions_are_allowed(installed: Path) -> None:
    """What is pinned is what was run; the ranges say no more than that of torch and transformers."""
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    allowed = {Requirement(line).name: Requirement(line) for line in project["dependencies"]}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    for name in ("torch", "torchvision", "transformers"):
        major, minor, *_ = map(int, pins[name].split("."))
        assert pins[name] in allowed[name].specifier
        assert f"{major}.{minor + 1}.0" not in allowed[name].specifier


def test_an_installed_package_starts_anywhere(installed: Path, tmp_path: Path) -> None:
    result = run_installed(installed, tmp_path, "config", installed / "gpg_vl/configs/digits.yaml")
    assert result.returncode == 0, result.stderr
    assert "runs/digits" in result.stdout
    result = run_installed(installed, tmp_path, "train", "nowhere.yaml")
    assert f"are in {installed / 'gpg_vl' / 'configs'}." in result.stderr


@pytest.mark.slow  # five processes that import torch
def test_the_quickstart_runs_from_the_wheel_alone(installed: Path, tmp_path: Path) -> None:
    """Its own config, but for its sizes; with the default it is read, and refused for nothing else."""
    shipped = installed / "gpg_vl" / "configs" / "quickstart.yaml"
    config = yaml.safe_load(shipped.read_text())
    config["train"].update(steps=2, prompts_per_step=4)
    config["eval"].update(every=0, limit=8)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(config))
    sizes = ("--train-rows", 16, "--test-rows", 48)
    result = run_installed(
        installed, tmp_path, "quickstart", "--config", "small.yaml", "--folder", "q", *sizes
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1].startswith("quickstart: base ")
    assert "gpg-vl train my.yaml --dry-run" in result.stdout

    dry = ["train", shipped, "model.path=q/base", "data.train=q/train.parquet", "--dry-run"]
    result = run_installed(installed, tmp_path, *dry, "eval.data=q/test.parquet")
    assert result.returncode == 0, result.stdout + result.stderr

"""The public names: there, lazy, and nothing else."""

import subprocess
import sys

import pytest

import gpg_vl


def test_every_public_name_is_there() -> None:
    for name in gpg_vl.__all__:
        assert getattr(gpg_vl, name).__name__ == name
    assert dir(gpg_vl) == gpg_vl.__all__
    with pytest.raises(AttributeError, match=r"no attribute 'Modell'; public are .*Model"):
        _ = gpg_vl.Modell


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, gpg_vl; print(*{'torch', 'transformers', 'pydantic'} & sys.modules.keys())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []

"""The packages of a wheel: gpg_vl, and in it the configs and data recipes of the repository's top level.

Everything else about the project stands in pyproject.toml, which can say either "find the packages" or
"this folder is that package", but not both.
"""

from setuptools import find_namespace_packages, setup

SHIPPED = {"gpg_vl.configs": "configs", "gpg_vl.data_recipes": "data_recipes"}
"""Found by gpg_vl/shipped.py wherever the package is installed."""

# rooms such as gpg_vl/answers/text have no __init__.py
OURS = find_namespace_packages(include=["gpg_vl*"])

setup(packages=[*OURS, *SHIPPED], package_dir=SHIPPED)

"""The package version, from the metadata of the installation; it is declared once, in pyproject.toml."""

from importlib.metadata import PackageNotFoundError, version


def installed_version() -> str:
    """The version, such as `0.1.0`; "unknown" if the package is not installed."""
    try:
        return version("gpg_vl")
    except PackageNotFoundError:
        return "unknown"

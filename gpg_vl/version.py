"""The version of the package, from the metadata that it was installed with: pyproject.toml says it once."""

from importlib.metadata import PackageNotFoundError, version


def installed_version() -> str:
    """Such as `0.1.0`; "unknown" for a folder that was never installed."""
    try:
        return version("gpg_vl")
    except PackageNotFoundError:
        return "unknown"

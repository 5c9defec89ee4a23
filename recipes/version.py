"""Which release of Paddock this is."""

from importlib.metadata import PackageNotFoundError, version


def installed_version() -> str:
    try:
        return version("paddock")
    except PackageNotFoundError:  # a checkout that is not installed
        return "not installed"

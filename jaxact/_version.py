"""Which version of jaxact is installed."""


def installed() -> str:
    """The version that is installed; from a bare checkout, the one that it would install."""
    import tomllib
    from importlib.metadata import PackageNotFoundError, version
    from pathlib import Path

    try:
        return version("jaxact")
    except PackageNotFoundError:
        project = Path(__file__).parents[1] / "pyproject.toml"
        return tomllib.loads(project.read_text())["project"]["version"] if project.exists() else "0+unknown"

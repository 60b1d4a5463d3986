"""What pyproject.toml can't say: the configurations lie beside the package, and inside it once it is installed."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["vlp*", "data_pipelines*"]), "vlp.configs"],
    package_dir={"vlp.configs": "configs"},
    package_data={"vlp": ["py.typed"], "data_pipelines": ["py.typed"], "vlp.configs": ["**/*.yaml"]},
)

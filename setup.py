"""What pyproject.toml can't say: the configurations lie beside the package, and inside it once it is installed."""

from setuptools import find_packages, setup

setup(
    include_package_data=False,  # else each folder of configurations is taken for a package that is missing here
    packages=[*find_packages(include=["vlp*", "data_pipelines*"]), "vlp.configs"],
    package_dir={"vlp.configs": "configs"},
    package_data={
        "vlp": ["py.typed", "assets/registry.yaml"],
        "data_pipelines": ["py.typed"],
        "vlp.configs": ["**/*.yaml"],
    },
)

"""Which packages are installed: those below fmscale/, and the folders that are mapped under it.

The rest is in pyproject.toml, which can map folders or find packages, but not both.
"""

from pathlib import Path

from setuptools import find_namespace_packages, find_packages, setup

MAPPED = {f"fmscale.{folder}": folder for folder in ("kernels", "launch") if Path(folder).is_dir()}

packages = [*find_packages(include=["fmscale", "fmscale.*"]), "fmscale.configs"]
packages += [f"fmscale.configs.{folder}" for folder in find_namespace_packages("configs")]
for name, folder in MAPPED.items():
    packages += [name, *(f"{name}.{package}" for package in find_packages(folder))]

setup(packages=packages, package_dir={**MAPPED, "fmscale.configs": "configs"})

"""What setup.cfg cannot say: recipes/ and ds_configs/ stand at the top here, and inside the package where installed."""

from setuptools import find_namespace_packages, find_packages, setup

recipes = find_namespace_packages("recipes", exclude=["configs*"])  # the settings are data: names may have a dot
setup(
    packages=[
        *find_packages(include=["rlhf*"]),
        "rlhf.ds_configs",
        "rlhf.recipes",
        *(f"rlhf.recipes.{name}" for name in recipes),
    ],
    package_dir={"rlhf.recipes": "recipes", "rlhf.ds_configs": "ds_configs"},
)

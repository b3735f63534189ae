# Everything static is in pyproject.toml; the build of the CUDA extension (csrc/) will live here.
from setuptools import setup

setup()

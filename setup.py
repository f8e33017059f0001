"""Packaging: three import packages from one tree, their dependencies, and the shipped recipes.

`kernels/` and `tools/` hold packages whose folder names are their import names: a top-level package called `kernels`
would shadow Hugging Face's distribution of that name and break `import transformers`.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

root = Path(__file__).parent


def version() -> str:
    """The version that megacpt/__init__.py states, read without importing it."""
    source = (root / "megacpt" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', source, re.MULTILINE)
    if match is None:
        raise RuntimeError('megacpt/__init__.py has no line __version__ = "..."')
    return match.group(1)


def recipe_files() -> list[tuple[str, list[str]]]:
    """The shipped recipes, folder by folder, for share/megacpt/recipes of the environment."""
    folders: dict[str, list[str]] = {}
    for path in sorted((root / "recipes").rglob("*.yaml")):
        relative = path.relative_to(root)
        folders.setdefault(f"share/megacpt/{relative.parent.as_posix()}", []).append(relative.as_posix())
    return list(folders.items())


extras = {
    "gpu": ["flash-attn>=2.8", "liger-kernel>=0.8.5"],
    "wandb": ["wandb>=0.21"],
    "datasets": ["datasets>=4"],
    "datatrove": ["datatrove>=0.6"],
    "bench": ["datasets>=4", "datatrove>=0.6", "megatron-core>=0.16"],
    "quickstart": ["accelerate>=1.10", "gguf>=0.17"],
    "dev": [
        "build>=1.2",
        "datasets>=4",
        "datatrove>=0.6",
        "hypothesis>=6.130",
        "import-linter>=2.5",
        "liger-kernel>=0.8.5",
        "matplotlib>=3.10",
        "megatron-core>=0.16",
        "mypy>=1.18",
        "pre-commit>=4",
        "pytest>=8.4",
        "pytest-timeout>=2.4",
        "ruff>=0.14",
        "types-PyYAML",
    ],
}

setup(
    name="megacpt",
    version=version(),
    description="Continue the pre-training of language models, 3D-parallel, without losing what they knew",
    long_description=(root / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[
        *find_packages(include=["megacpt", "megacpt.*"]),
        *find_packages("kernels", include=["megacpt_kernels", "megacpt_kernels.*"]),
        *find_packages("tools", include=["megacpt_tools", "megacpt_tools.*"]),
    ],
    package_dir={"megacpt_kernels": "kernels/megacpt_kernels", "megacpt_tools": "tools/megacpt_tools"},
    package_data={package: ["py.typed"] for package in ("megacpt", "megacpt_kernels", "megacpt_tools")}
    | {"megacpt_tools.report": ["*.j2"]},
    data_files=recipe_files(),
    install_requires=[
        "deepspeed>=0.19.8,<0.20",
        "fastokens>=0.3.5",
        "fsspec>=2024.6",
        "gigatoken>=0.10",
        "jinja2>=3.1",
        "ninja",
        "numpy>=2",
        "orjson>=3.10",
        "packaging>=24",
        "plotext>=6",
        "pyarrow>=18",
        "pydantic>=2.11",
        "pyyaml>=6",
        "rich>=14",
        "safetensors>=0.6",
        "sentencepiece>=0.2.2",
        "tensorboard>=2.19",
        "tiktoken>=0.9",
        "tokenizers>=0.22",
        "torch>=2.11",
        "transformers>=5.17,<6",
        "vl-convert-python>=1.9",
        "triton>=3.4; platform_system == 'Linux'",
        "zstandard>=0.23",
    ],
    extras_require=extras,
    entry_points={"console_scripts": ["megacpt = megacpt_tools.cli:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)

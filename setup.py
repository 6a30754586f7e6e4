"""Packaging. Bounds say what the code needs; requirements-cpu.txt says what it is tested with."""

from setuptools import find_namespace_packages, setup

RUNTIME = [
    # The engine, the layers and the data format: their internals are relied upon, so exact versions.
    "deepspeed==0.19.8",
    "megatron-core==0.16.1",
    "torch>=2.13,<2.14",
    # Data.
    "numpy>=2.2",
    "orjson>=3.10",
    "protobuf>=5",
    "pyarrow>=20",
    "sentencepiece>=0.2.1",
    "tiktoken>=0.9",
    "tokenizers>=0.22",
    "webdataset>=1.0",
    "zstandard>=0.23",
    # Config and checkpoints.
    "pydantic>=2.11",
    "PyYAML>=6.0.2",
    "safetensors>=0.5",
    "xxhash>=3.5",
    # Telemetry.
    "jinja2>=3.1",
    "markupsafe>=3.0",
    "matplotlib>=3.10",
    "tensorboard>=2.20",
    "tqdm>=4.67",
]

EXTRAS = {
    # megatron-core takes its fused parts where it finds them; the bounds are its own. APEX is no package on PyPI: it is
    # built from its source (see its README), and nothing here needs it.
    "gpu": ["transformer-engine[core_cu13,pytorch]>=2.9,<2.12"],
    "hf": ["transformers>=4.48"],
    "slurm": ["submitit>=1.5"],
    "dev": [
        "hypothesis>=6.120",
        "mypy>=2.4",
        "pre-commit>=4",
        "pytest>=9",
        "pytest-timeout>=2.4",
        "ruff>=0.17",
        "transformers>=4.48",
        "types-PyYAML",
    ],
}

setup(
    name="calm-megatron",
    version="0.1.0",
    description="Pretraining of continuous autoregressive language models (CALM) on DeepSpeed and megatron-core",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_namespace_packages(include=["calm_megatron", "calm_megatron.*"]),
    py_modules=["pretrain_ae", "pretrain_calm"],
    package_data={"calm_megatron": ["py.typed"], "calm_megatron.telemetry": ["*.jinja"]},
    install_requires=RUNTIME,
    extras_require=EXTRAS,
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Typing :: Typed",
    ],
)

"""What is run before a change lands: tests, lint, wheels; and on demand: bench, fuzz, gpu."""

import re
import shutil
import tomllib
from pathlib import Path

import nox

nox.options.sessions = ["lint", "tests", "wheels"]
nox.options.default_venv_backend = "uv"

DISTRIBUTIONS = {path.parent.name: path.parent for path in sorted(Path().glob("*/*/pyproject.toml"))}
WHEELS = Path("dist")
# The tests run on two processes of one thread each: that is the fastest on two cores, and results do not depend on it.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """All tests of all packages and apps, in the workspace's environment."""
    session.run("pytest", "-n", "2", *session.posargs, env=ONE_THREAD)


@nox.session(venv_backend="none")
def lint(session: nox.Session) -> None:
    """Style, and the imports that the design allows."""
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")


@nox.session(venv_backend="none")
def wheels(session: nox.Session) -> None:
    """Build every wheel; install each alone in a clean environment and run that package's tests on it."""
    shutil.rmtree(WHEELS, ignore_errors=True)
    for name in DISTRIBUTIONS:
        session.run("uv", "build", "--quiet", "--wheel", "--package", name, "--out-dir", str(WHEELS))
    for name in DISTRIBUTIONS:
        session.notify(f"wheel({name})")


@nox.session
@nox.parametrize("name", list(DISTRIBUTIONS), ids=list(DISTRIBUTIONS))
def wheel(session: nox.Session, name: str) -> None:
    """One built wheel, alone in a clean environment: an import that is not declared fails here."""
    with_extra = {"vlm-data": "vlm-data[samples,endpoint]"}
    wheels = [f"{with_extra.get(own, own)} @ {_wheel(own)}" for own in (name, *_siblings(name))]
    session.install(*wheels, "pytest", "pytest-xdist", "hypothesis")
    if name == "peft-methods":
        session.run("python", "-c", "import importlib.util as u; assert u.find_spec('transformers') is None")
    options = ("-q", "-n", "2", "-p", "no:cacheprovider", "-m", "not slow and not gpu")
    session.run("pytest", *options, str(DISTRIBUTIONS[name] / "tests"), env=ONE_THREAD)


def _siblings(name: str) -> list[str]:
    """The distributions of this workspace that one requires, with theirs; no others are in its environment."""
    required = tomllib.loads((DISTRIBUTIONS[name] / "pyproject.toml").read_text())["project"]["dependencies"]
    own = [sibling for sibling in DISTRIBUTIONS if any(re.match(rf"{sibling}\b(?!-)", line) for line in required)]
    return list(dict.fromkeys(one for sibling in own for one in (sibling, *_siblings(sibling))))


def _wheel(name: str) -> str:
    (file,) = WHEELS.glob(f"{name.replace('-', '_')}-*.whl")
    return file.resolve().as_uri()


@nox.session(venv_backend="none")
def bench(session: nox.Session) -> None:
    """Benchmarks; they print tables and take minutes."""
    for file in sorted(Path("tests/benchmarks").glob("bench_*.py")):
        session.run("python", str(file), *session.posargs)


@nox.session(venv_backend="none")
def fuzz(session: nox.Session) -> None:
    """10,000 malformed data files, vlm-infer killed in 20 jobs, vlm-train in 30 runs; it takes minutes."""
    file = "packages/vlm-data/tests/test_data_fuzz.py"
    session.run("pytest", "-q", file, *session.posargs, env={**ONE_THREAD, "VLM_DATA_FUZZ": "10000"})
    file = "apps/vlm-infer/tests/test_infer_killed.py"
    session.run("pytest", "-q", file, *session.posargs, env={**ONE_THREAD, "VLM_INFER_KILLS": "20"})
    file = "apps/vlm-train/tests/test_train_killed.py"
    session.run("pytest", "-q", file, *session.posargs, env={**ONE_THREAD, "VLM_TRAIN_KILLS": "30"})


@nox.session(venv_backend="none")
def gpu(session: nox.Session) -> None:
    """The tests that need an accelerator."""
    session.run("pytest", "-m", "gpu", *session.posargs)

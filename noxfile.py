"""What is run before a change lands: tests, lint, wheels; and on demand: bench, gpu."""

import shutil
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
    extra = "[samples]" if name == "vlm-data" else ""
    session.install(f"{name}{extra}", "pytest", "hypothesis", "--find-links", str(WHEELS), "--reinstall-package", name)
    if name == "peft-methods":
        session.run("python", "-c", "import importlib.util as u; assert u.find_spec('transformers') is None")
    session.run("pytest", "-q", "-p", "no:cacheprovider", str(DISTRIBUTIONS[name] / "tests"), env=ONE_THREAD)


@nox.session(venv_backend="none")
def bench(session: nox.Session) -> None:
    """Benchmarks; they print tables and take minutes."""
    for file in sorted(Path("tests/benchmarks").glob("bench_*.py")):
        session.run("python", str(file), *session.posargs)


@nox.session(venv_backend="none")
def gpu(session: nox.Session) -> None:
    """The tests that need an accelerator."""
    session.run("pytest", "-m", "gpu", *session.posargs)

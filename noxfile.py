"""The sessions of pressgauge: ``nox -s measure``, ``nox -s cpu``, and so on. Arguments after ``--`` are passed to the
tool."""

import os
import shutil
from pathlib import Path
from typing import Any

import nox

nox.needs_version = ">=2025.2"
nox.options.sessions = ["cpu"]
nox.options.reuse_existing_virtualenvs = True

PROJECT = nox.project.load_toml("pyproject.toml")
TORCH = "torch==2.13.0"  # what the baselines were recorded with; no lock moves it
PEERS: dict[str, Any] = nox.project.load_toml("tests/peers/packages.toml")
LOCKS = {
    "constraints.txt": tuple(
        name for name in PROJECT["dependency-groups"] if name not in ("lm-eval", "oldest", "peers")
    ),
    "constraints-lm-eval.txt": ("lm-eval",),
    "constraints-oldest.txt": ("oldest",),
    "constraints-peers.txt": ("peers",),
}
"""Lock of each dependency group."""
TWO = ("--numprocesses", "2", "--dist", "worksteal")
"""Two workers, the first of which to be idle takes tests from the other, so that a long one at the end delays none."""


def install(session: nox.Session, *groups: str, locked: bool = True) -> None:
    """Install the package with dependency groups, in the releases of the groups' lock or the newest ones.

    With ``NOX_DEFAULT_VENV_BACKEND=none``, for machines on which nothing can be installed, all is taken from the Python
    that runs nox.
    """
    if session.venv_backend == "none":
        session.env["PYTHONPATH"] = str(Path("src").resolve())
        return
    if locked:
        lock = next(path for path, names in LOCKS.items() if set(groups) <= set(names))
        releases = ["--constraint", lock]
        # For what builds the package, too: the second variable from pip 25.3 on, the first before.
        builds = dict.fromkeys(("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT"), Path(lock).resolve().as_uri())
    else:
        releases, builds = ["--upgrade", "--upgrade-strategy", "eager"], {}
    requirements = nox.project.dependency_groups(PROJECT, *groups)
    # To compile all modules of torch and transformers takes longer than the rest together; few are ever imported. These
    # are compiled once, then, and not by each process, even where the environment says that nothing is to be written.
    session.env["PYTHONDONTWRITEBYTECODE"] = ""
    session.install("--no-compile", *releases, "--editable", ".[bench]", *requirements, env=builds)


def install_peer(session: nox.Session, requires: list[str], releases: dict[str, str] | None = None, **_: Any) -> None:
    """Install the package with the tests and a third-party package, in the releases of the lock.

    Args:
        session: the session.
        requires: the third-party package, and what it needs beside the lock, pinned.
        releases: releases other than those of the lock.
    """
    others = releases or {}
    lines = Path("constraints.txt").read_text(encoding="utf-8").splitlines()
    lock = Path(session.create_tmp()).resolve() / "constraints.txt"
    lock.write_text("\n".join([*(line for line in lines if line.partition("==")[0] not in others),
                               *(f"{name}=={release}" for name, release in others.items())]))  # fmt: skip
    tests = nox.project.dependency_groups(PROJECT, "test")
    session.install("--no-compile", "--constraint", str(lock), "--editable", ".[bench]", *tests, *requires)


def printed(session: nox.Session, *arguments: str) -> str:
    """What Python prints, without the warnings of tools, which go to the standard error."""
    return str(session.run("python", *arguments, silent=True, stderr=None)).strip()


def require(session: nox.Session, device: str, condition: str) -> None:
    """Stop with an error if the machine does not have the device, since a skipped validation would hide failures."""
    if printed(session, "-c", f"import torch; print({condition})") != "True":
        session.error(f"nox -s {device} needs a machine on which torch finds {device}, and it finds none here")


@nox.session
def measure(session: nox.Session) -> None:
    """Measure a press on a model; ``-- --help`` lists the options."""
    install(session)
    session.run("pressgauge", "measure", *session.posargs)


@nox.session
def cpu(session: nox.Session) -> None:
    """Validate on the CPU: the whole suite."""
    install(session, "test")
    # With the releases of the lock, deprecated features are errors.
    session.run("python", "-m", "pytest", "--device", "cpu", *TWO, "--deprecations", *session.posargs)
    if not session.posargs and not os.environ.get("CI"):
        # Times are taken when nothing else runs, and not on runners, which are other machines each time.
        session.run("python", "-m", "pytest", "--device", "cpu", "tests/regression/test_time.py")


@nox.session
def quick(session: nox.Session) -> None:
    """Run the tests of ``tests/quick.txt``: in less than a minute, those that kill most mutants."""
    install(session, "test")
    session.run("python", "-m", "pytest", "--quiet", "--numprocesses", "2", "@tests/quick.txt", *session.posargs)


@nox.session
def cuda(session: nox.Session) -> None:
    """Validate on a CUDA device."""
    install(session, "test")
    require(session, "cuda", "torch.cuda.is_available()")
    session.run("python", "-m", "pytest", "--device", "cuda", *session.posargs)


@nox.session
def mps(session: nox.Session) -> None:
    """Validate on Apple's Metal."""
    install(session, "test")
    require(session, "mps", "torch.backends.mps.is_available()")
    session.run("python", "-m", "pytest", "--device", "mps", *session.posargs)


@nox.session
def baselines(session: nox.Session) -> None:
    """Record the regression baselines of a device, ``-- --device cuda`` for a GPU, once conformance is green."""
    install(session, "test")
    workers = () if session.posargs else ("--numprocesses", "2")
    session.run("python", "-m", "pytest", "tests/conformance", "--quiet", *workers, *session.posargs)
    # By one process, since some of it is times.
    session.run("python", "-m", "pytest", "tests/regression", "--regen-all", *session.posargs)


@nox.session
def oldest(session: nox.Session) -> None:
    """Conformance and tests of our presses on the oldest supported transformers."""
    install(session, "oldest")
    inside = ["cache", "test_attach.py", "test_proof.py", "test_storage.py"]
    where = ["tests/conformance", "tests/properties", *(f"tests/unit/{name}" for name in inside)]
    session.run("python", "-m", "pytest", *where, *TWO, *session.posargs)


@nox.session
def newest(session: nox.Session) -> None:
    """The whole suite with the newest releases that the metadata allows, after listing those newer than the lock."""
    install(session, "test", locked=False)
    session.run("python", "-m", "tools.lock", "newer", "constraints.txt")
    session.run("python", "-m", "pytest", "--device", "cpu", *TWO, *session.posargs)


@nox.session(python="3.11")
def lock(session: nox.Session) -> None:
    """Rewrite the locks with the newest releases for Python 3.11, the oldest supported one, without updating torch."""
    session.install("--constraint", "constraints.txt", "packaging")
    metadata = PROJECT["project"]
    # lm-eval and what it needs are in its own lock, by its group.
    extras = [each for name, extra in metadata["optional-dependencies"].items() if name != "lm-eval" for each in extra]
    for path, groups in LOCKS.items():
        requirements = nox.project.dependency_groups(PROJECT, *groups)
        session.run(
            "python", "-m", "tools.lock", "write", path, TORCH, *metadata["dependencies"], *extras, *requirements
        )


@nox.session
def installs(session: nox.Session) -> None:
    """Run every install line of README and docs in an empty environment, in the releases of the lock."""
    install(session, "test")
    session.run("python", "-m", "tools.installs")


MUTATED = {
    "decide": (
        ("rules", "presses", "history", "softmax"),
        (
            "properties/test_counts.py",
            "properties/test_which.py",
            "properties/test_replay.py",
            "properties/test_windows.py",
            "properties/test_softmax_and_latents.py",
            "properties/test_attention_scores.py",
            "unit/rules",
            "unit/presses",
            "unit/history",
            "unit/test_softmax.py",
            "harness/test_accelerator.py",
        ),
    ),
    "hold": (
        ("storage", "cache"),
        (
            "unit/test_storage.py",
            "properties/test_memory.py",
            "properties/test_refusals.py",
            "properties/test_which.py",
            "properties/test_rows.py",
            "properties/test_onepass.py",
            "properties/test_attention_first.py",
            "unit/presses/test_attention_scores.py",
            "unit/test_decoder.py",
            "unit/test_likelihood.py",
            "unit/history/test_fixed.py",
            "unit/cache",
            "unit/test_storage_details.py",
            "properties/test_softmax_and_latents.py",
            "harness/test_accelerator.py",
        ),
    ),
    "attach": (
        ("proof", "attach", "onepass"),
        (
            "unit/test_storage.py",
            "unit/test_attach.py",
            "unit/test_proof.py",
            "unit/test_proof_vacuous.py",
            "properties/test_watch.py",
            "properties/test_surroundings.py",
            "properties/test_refusals.py",
            "properties/test_leaks.py",
            "properties/test_onepass.py",
            "properties/test_missed.py",
            "unit/test_decoder.py",
            "unit/test_decoder_details.py",
            "unit/test_likelihood.py",
            "unit/test_onepass.py",
            "unit/test_onepass_details.py",
            "unit/test_attach_details.py",
            "unit/test_onepass_parts_details.py",
            "unit/test_softmax.py",
            "properties/test_softmax_and_latents.py",
            "harness/test_accelerator.py",
        ),
    ),
    "measure": (
        ("decoder", "likelihood", "uncompressed", "divergence"),
        (
            "unit/test_divergence.py",
            "unit/test_divergence_devices.py",
            "properties/test_measuring.py",
            "unit/test_decoder.py",
            "unit/test_decoder_details.py",
            "unit/test_onepass.py",
            "unit/test_onepass_details.py",
            "unit/test_likelihood.py",
            "unit/test_arguments.py",
            "properties/test_onepass.py",
            "unit/test_decoder_refusals.py",
            "unit/test_likelihood_details.py",
            "unit/test_likelihood_devices.py",
            "unit/test_decoder_devices.py",
            "unit/test_decoder_parts_details.py",
            "harness/test_accelerator.py",
        ),
    ),
    "models": (
        ("models/interface", "models/support", "models/latents"),
        (
            "properties/test_refusals.py",
            "properties/test_onepass.py",
            "properties/test_surroundings.py",
            "properties/test_borrowed.py",
            "unit/test_likelihood.py",
            "unit/models",
        ),
    ),
}
"""Parts of the engine: modules, and the tests that run on their mutants."""


@nox.session
@nox.parametrize(
    "part", ["decide", "hold", "attach", "measure", "models"], ids=["decide", "hold", "attach", "measure", "models"]
)
def mutate(session: nox.Session, part: str) -> None:
    """Mutate a part of the engine: no mutant may survive the tests unless it is listed as equivalent."""
    install(session, "mutate")
    copy = Path(session.create_tmp()).resolve() / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    for name in ("src", "tests", "tools"):
        shutil.copytree(name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    modules, tests = MUTATED[part]
    files = [f"src/pressgauge/{name}/*.py" if Path("src/pressgauge", name).is_dir() else f"src/pressgauge/{name}.py"
             for name in modules]  # fmt: skip
    settings = {"only_mutate": files, "pytest_add_cli_args_test_selection": [f"tests/{name}" for name in tests]}
    text = Path("pyproject.toml").read_text(encoding="utf-8")
    text = text.replace("[tool.mutmut]", "\n".join(["[tool.mutmut]", *(f"{k} = {v!r}" for k, v in settings.items())]))
    (copy / "pyproject.toml").write_text(text, encoding="utf-8")
    session.run("python", "tools/undecorated.py", str(copy / "src"))
    session.chdir(copy)
    session.run("mutmut", "run", *session.posargs, env={"PYTHONPATH": str(copy / "tests"), "OMP_NUM_THREADS": "1"})
    session.run("python", "-m", "tools.survivors", *modules)


@nox.session
def lint(session: nox.Session) -> None:
    """Format, lint and types; ``-- --fix`` applies the fixes of ruff."""
    install(session, "lint")
    session.run("ruff", "format", *([] if "--fix" in session.posargs else ["--check"]), ".")
    session.run("ruff", "check", *session.posargs, ".")
    session.run("mypy")


@nox.session
def kills(session: nox.Session) -> None:
    """Run every law against every mutant, and write the kill matrix to ``docs/``."""
    install(session, "test")
    session.run("python", "-m", "tools.kill_matrix", *session.posargs)


@nox.session
@nox.parametrize("package", list(PEERS), ids=list(PEERS))
def peers(session: nox.Session, package: str) -> None:
    """Verify the findings on a third-party package, run every law against it, and write its page to ``docs/``.

    Each package has an environment of its own, since several need another transformers or are imported under one name.
    """
    if lock := PEERS[package].get("lock"):
        install(session, lock)
        session.run("python", "-m", "pytest", "tests/peers", *session.posargs)
    else:
        install_peer(session, **PEERS[package])
        # In their order, since packages keep state.
        scripts = f"tests/peers/verify/test_{package.replace('-', '_')}.py"
        session.run("python", "-m", "pytest", scripts, "-p", "no:randomly")
    session.run("python", "-m", "tools.peers", package)


TEXTS = tuple(Path("..", "shared", "data", name) for name in ("wikitext-2/test.txt", "books/shakespeare.txt"))
"""Texts for the session ``real``, where found."""


@nox.session
def real(session: nox.Session) -> None:
    """Run the tests of Gemma 3 270M, a file of 253 MB under Gemma's terms of use, and print tables of it.

    ``-- --regen-all``, or other options of pytest, only runs the tests; ``-- novel.txt`` only prints the tables, of
    that text.
    """
    install(session, "test")
    folder = Path(session.create_tmp()).resolve()
    model = printed(session, "-m", "tools.real.fetch", str(folder))
    options = session.posargs if session.posargs and session.posargs[0].startswith("-") else []
    texts = [] if options else session.posargs or [str(text) for text in TEXTS if text.is_file()]
    if options or not session.posargs:
        session.run("python", "-m", "pytest", "tests/regression/test_gemma.py", "--real-model", model, *options)
    for text in texts:
        for tool in ("patterns", "claims", "speed"):
            session.run("python", "-m", f"tools.real.{tool}", model, text)


@nox.session
def lm_eval(session: nox.Session) -> None:
    """Evaluate local tasks with lm-evaluation-harness, in an environment of its own, since lm-eval needs many packages
    that nothing else here does."""
    install(session, "lm-eval")
    session.run(
        "python",
        "-m",
        "pytest",
        "tests/unit/test_lm_eval.py",
        "tests/unit/observation/test_seen_lm_eval.py",
        *session.posargs,
        env={"HF_HUB_OFFLINE": "1"},
    )


@nox.session
def zoo(session: nox.Session) -> None:
    """Examine a press on every causal architecture of the installed transformers, and write ``docs/zoo.md``."""
    install(session, "test")
    session.run("python", "-m", "tools.zoo", *session.posargs)


@nox.session
def comparison(session: nox.Session) -> None:
    """Compare the presses with published claims, and write ``docs/comparison.md``; ``-- --help`` lists the options."""
    install(session, "test")
    session.run("python", "-m", "tools.comparison", *session.posargs)


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Print ratios of times and memory; ``-- --help`` lists the benchmarks."""
    install(session)
    session.run("python", "-m", "tools.benchmarks", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into ``site/``; a warning is an error."""
    install(session, "docs")
    session.run("mkdocs", "build", "--strict", *session.posargs)


@nox.session
@nox.parametrize("name", ["reference", "reference-neox"], ids=["llama", "neox"])
def train(session: nox.Session, name: str) -> None:
    """Train the reference models again, from scratch, into the package."""
    install(session)
    session.run("python", "-m", "pressgauge.reference.train", name, *session.posargs)

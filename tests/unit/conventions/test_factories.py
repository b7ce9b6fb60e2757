"""Where a factory comes from."""

from importlib.metadata import packages_distributions, version

import pytest

from pressgauge.conventions.factories import version_of


@pytest.mark.parametrize("package", ["yaml", "_pytest", "pytest", "typing_extensions", "xdist"])
def test_a_package_is_found_by_what_its_distribution_installed(package: str) -> None:
    """The distribution is that of ``packages_distributions``, whatever its name."""
    (own,) = set(packages_distributions()[package])
    assert version_of(f"{package}.module:factory") == f"{own} {version(own)}"


@pytest.mark.parametrize("package", ["yam", "aml", "my_own", "y.ml", "tests"])
def test_a_module_that_no_distribution_installed_has_no_version(package: str) -> None:
    assert version_of(f"{package}:factory") == "version unknown"

"""Common to all tests: --match selects them by the pattern that ./dev test --filter takes."""

import fnmatch


def pytest_addoption(parser):
    parser.addoption("--match", default="", metavar="PATTERN",
                     help="a GoogleTest filter, matched against path::name")


def matches(pattern, name):
    """As GoogleTest does: patterns separated by ':', those after '-' exclude."""
    wanted, _, unwanted = pattern.partition("-")

    def any_of(patterns):
        return any(fnmatch.fnmatchcase(name, one) or fnmatch.fnmatchcase(name, f"*::{one}")
                   for one in patterns.split(":") if one)

    return (not wanted or any_of(wanted)) and not any_of(unwanted)


def pytest_collection_modifyitems(config, items):
    pattern = config.getoption("--match")
    if pattern:
        chosen = [item for item in items if matches(pattern, item.nodeid)]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen

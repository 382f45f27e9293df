"""Common to all tests: --match selects them by the pattern that ./dev test --filter takes."""

import fnmatch


def pytest_addoption(parser):
    parser.addoption("--match", default="", metavar="PATTERN",
                     help="a GoogleTest filter, matched against file.function")


def matches(pattern, item):
    """As GoogleTest does with file.function: patterns separated by ':', those after '-' exclude."""
    name = f"{item.path.stem}.{item.name}"
    wanted, _, unwanted = pattern.partition("-")

    def any_of(patterns):
        return any(fnmatch.fnmatchcase(name, one) for one in patterns.split(":") if one)

    return (not wanted or any_of(wanted)) and not any_of(unwanted)


def pytest_collection_modifyitems(config, items):
    pattern = config.getoption("--match")
    if pattern:
        chosen = [item for item in items if matches(pattern, item)]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen

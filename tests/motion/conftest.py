import logging

import pytest


@pytest.fixture
def warned(caplog):
    """The library's warnings, which do not propagate by default."""
    logger = logging.getLogger("diffusers_dreamactor")
    before = logger.propagate
    logger.propagate = True
    root = logging.getLogger("diffusers")
    root_before, root.propagate = root.propagate, True
    caplog.set_level(logging.WARNING)
    yield caplog
    logger.propagate, root.propagate = before, root_before

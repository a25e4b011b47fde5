import pytest
from processes import Processes


@pytest.fixture(scope="session")
def programs():
    """Starts programs of several processes."""
    programs = Processes("plain_programs", "training_programs")
    yield programs
    programs.close()

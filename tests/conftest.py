"""For all tests."""

from hypothesis import settings

# How long an example takes is the machine's affair: other processes use it too, and a test must not fail for that.
settings.register_profile("fathom", deadline=None)
settings.load_profile("fathom")

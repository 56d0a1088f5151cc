"""For all tests: hypothesis judges what is right, not how long it takes (that is for `make bench-...`)."""

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

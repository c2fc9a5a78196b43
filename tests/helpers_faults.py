"""System calls that fail when a test wants them to.

with monkeypatch.context() as patch:
    failing = Failing(patch, 3, OSError(errno.ENOSPC, "No space left on device"))
    ...  # the third call fails
assert failing.calls >= 3
"""

import os

CALLS = ("open", "fsync", "link", "replace", "rename", "lstat")


class Failing:
    """Call number `at` of some functions of `os` raises an error.

    error : an exception, or a function to be called instead
    calls : how many there were
    """

    def __init__(self, patch, at, error, names=CALLS):
        self.at, self.error, self.calls = at, error, 0
        for name in names:
            patch.setattr(os, name, self.failing(getattr(os, name)))

    def failing(self, function):
        """The function, failing when its turn comes."""

        def call(*arguments, **settings):
            self.calls += 1
            if self.calls == self.at:
                if callable(self.error):
                    self.error()
                raise self.error
            return function(*arguments, **settings)

        return call

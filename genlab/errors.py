"""What a user's mistake raises. Free of heavy imports, so that the command line can answer at once."""


class UserError(ValueError):
    """A mistake that the user can mend: one sentence says what came, what is allowed and which override cures it.

    The command line prints it without a traceback and exits with code 2.
    """


class TrainingStopped(RuntimeError):
    """Training cannot go on (a NaN, a full disk); the message says why and what is kept. Exit code 3."""

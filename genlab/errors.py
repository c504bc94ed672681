"""Errors for a user's mistakes. Free of heavy imports, so that the command line can answer at once."""


class UserError(ValueError):
    """A mistake that the user can mend: one sentence says what came, what is allowed and which override cures it.

    The command line prints it without a traceback and exits with code 2.
    """


class NotNumbers(UserError):
    """Samples are NaN or infinite, so that no score can be taken of them; a training goes on without."""


class TrainingStopped(RuntimeError):
    """Training cannot go on (a NaN, a full disk); the message says why and what is kept. Exit code 3."""


class NotFinite(TrainingStopped):
    """A loss, a gradient or a weight became NaN or infinite: `health.on_nan=rollback` goes on from before it."""


class Interrupted(SystemExit):
    """A signal ends the program now; the exit code is 128 + its number, as shells have it."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)

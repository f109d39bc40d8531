"""Every failure that a user can meet, as one exception tree.

Why: an error crosses three borders (daemon → socket → terminal or HTTP) and must arrive with the
same four facts: a code for programs, a sentence, the field it speaks of, and the way out. Inside a
process it is an exception from this tree; on the wire it is `messages.Error` made from it.

    DpipedError
    ├── SettingsError        an environment variable holds something it can't hold
    ├── NotReady             a place that a setting names can't be used now: full, or out of reach
    ├── InvalidInput         a request, path or config that can't be taken; names the field
    │   ├── InvalidForm      fields of the training form; names each
    │   └── UnknownRun       no run of that name
    ├── Refused              well formed, but not now (a run is active, nothing to stop)
    ├── NotInstalled         train.py or the deepspeed launcher is missing
    ├── LaunchFailed         the runner could not start the training
    ├── RunDamaged           a run directory whose records can't be read
    ├── AlreadyOwned         another daemon holds the state directory or the socket
    └── Unreachable          (client) no daemon answers on the socket

Known gap: messages are English only.
"""

import errno

PASSING = frozenset(
    (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EIO,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.ENOMEM,
        errno.ENOTCONN,
        errno.ENXIO,
        errno.ENODEV,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EMFILE,
        errno.ENFILE,
    )
)
"""What a disk that is full or a network volume that is away gives."""


class DpipedError(Exception):
    """Base of all. `code` is the machine-readable name that goes on the wire."""

    code = "internal"

    def __init__(self, message: str, *, field: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.hint = hint


class SettingsError(DpipedError):
    """`field` is the environment variable's name."""

    code = "settings"


class NotReady(DpipedError):
    """`field` is the variable that names the place. It may be better the next time."""

    code = "not_ready"


def of_place(field: str, text: str, error: OSError) -> DpipedError:
    """What a failure of the place that a setting names is: wrong until somebody changes it, or passing."""
    kind = NotReady if error.errno in PASSING else SettingsError
    return kind(f"{field}: {text}: {error.strerror}", field=field)


class InvalidInput(DpipedError):
    """`field` is the request's or the config's key, dotted (`model.type`)."""

    code = "invalid"


class InvalidForm(InvalidInput):
    """`fields` are (field, what it takes), one for each wrong field; the first is `field`."""

    code = "invalid_form"

    def __init__(self, fields: tuple[tuple[str, str], ...], *, hint: str | None = None) -> None:
        super().__init__("; ".join(f"{name} {text}" for name, text in fields), field=fields[0][0], hint=hint)
        self.fields = fields


class UnknownRun(InvalidInput):
    """No run directory fits the name given."""

    code = "unknown_run"


class Refused(DpipedError):
    """The state machine does not allow it now."""

    code = "refused"


class NotInstalled(DpipedError):
    """`field` is the variable that says where the missing program is looked for."""

    code = "not_installed"


class LaunchFailed(DpipedError):
    """The run's directory exists and its record says why."""

    code = "launch_failed"


class RunDamaged(DpipedError):
    """`field` is the file in the run directory that can't be read."""

    code = "run_damaged"


class AlreadyOwned(DpipedError):
    """Two daemons would fight over one directory or one socket."""

    code = "already_owned"


class Unreachable(DpipedError):
    """Raised by the client only."""

    code = "unreachable"

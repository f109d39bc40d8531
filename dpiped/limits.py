"""How many files the daemon, TensorBoard and `dpipectl serve` may have open at once.

Why: five hundred clients are five hundred connections, TensorBoard keeps every event file open, and many
systems begin a service with a limit of 1024. So these take what they may have. A training gets back what it
would have had without the daemon, since programs that use select() fail with more.

Known gap: a hard limit below the number of clients is the administrator's to raise (LimitNOFILE=).
"""

import resource

ENOUGH = 65536


class _Files:
    inherited: int | None = None


def raise_files() -> None:
    """The soft limit becomes the hard one, or enough."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    _Files.inherited = soft
    wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def inherited_files() -> int:
    """The soft limit that this process was started with."""
    return raised_files() if _Files.inherited is None else _Files.inherited


def raised_files() -> int:
    """The soft limit that this process has now."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def set_files(soft: int) -> None:
    """Sets the soft limit, for what this process starts or becomes."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

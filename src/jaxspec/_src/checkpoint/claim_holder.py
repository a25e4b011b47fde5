"""Who has claimed a model_dir, as the file of the claim says, and whether that training is alive."""

import contextlib
import dataclasses
import datetime
import json
import os
import socket
import uuid
from typing import Self

from jaxspec._src.base.files import read_file, write_file

_held: set[str] = set()
"""The claims of this process."""


@dataclasses.dataclass(frozen=True)
class Holder:
    """A training that has claimed a model_dir. All times are in seconds since the epoch."""

    id: str
    host: str
    machine: str
    """Where it is the same, a process id means the same process."""
    pid: int
    process_began: float
    """A later process may have the same id."""
    since: float
    refreshed: float

    @classmethod
    def of_this_process(cls, now: float) -> Self:
        """A new one."""
        import psutil

        began = psutil.Process().create_time()
        return cls(uuid.uuid4().hex, socket.gethostname(), _this_machine(), os.getpid(), began, now, now)

    def __str__(self) -> str:
        since = datetime.datetime.fromtimestamp(self.since, datetime.UTC)
        here = " (this one)" if self.id in _held else ""
        return f"process {self.pid}{here} on host {self.host}, since {since:%Y-%m-%d %H:%M:%S} UTC"

    def hold(self) -> None:
        """This process has the claim from now on, until `release`."""
        _held.add(self.id)

    def release(self) -> None:
        """This process no longer has the claim."""
        _held.discard(self.id)

    def is_alive(self) -> bool | None:
        """Whether the training goes on; None if its process is on another machine, where it cannot be seen."""
        import psutil

        if self.machine != _this_machine():
            return None
        if self.pid == os.getpid():
            return self.id in _held
        try:
            process = psutil.Process(self.pid)
            is_same = abs(process.create_time() - self.process_began) < 10  # the system's clock may have been set
            return bool(is_same and process.status() != psutil.STATUS_ZOMBIE)
        except psutil.Error:
            return False

    def write(self, path: str) -> None:
        """Writes the file of the claim, and makes its directory."""
        write_file(path, json.dumps(dataclasses.asdict(self)).encode())

    @classmethod
    def read(cls, path: str) -> Self | None:
        """What the file of a claim says; None if there is no such file."""
        try:
            return cls(**json.loads(read_file(path)))
        except (OSError, ValueError, TypeError):
            return None


def _this_machine() -> str:
    """The host, when it was started, and the container."""
    boot, container = "", ""
    with contextlib.suppress(OSError):  # only Linux has these
        boot = read_file("/proc/sys/kernel/random/boot_id").decode().strip()
        container = os.readlink("/proc/self/ns/pid")
    return f"{socket.gethostname()} {boot} {container}"

"""Programs of several processes on this machine: `Processes.run` starts one, `Program` is one that runs.

JAX is imported once, in a process that forks a child for each process of a program. It must not be used before the
fork. A child ends as a Python program does: it returns from `main`, raises, or is killed.
"""

import contextlib
import faulthandler
import importlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

TIMEOUT_SECS = 60
"""A program that takes longer is killed, and its test fails."""
_TAIL = 8000


class Program:
    """One program that runs in several processes.

    Attributes:
      directory: the working directory of all its processes.
    """

    def __init__(self, directory, port, pids, timeout):
        self.directory, self._port, self._pids = directory, port, pids
        self._ends = time.monotonic() + timeout

    def wait_for(self, text, *, process):
        """Waits until the process has printed `text`."""
        self._wait_for_text(self.output, text, process)

    def wait_for_log(self, text, *, process):
        """Waits until the process has written `text` to stderr."""
        self._wait_for_text(self.log, text, process)

    def send(self, number, *, process):
        """Sends a signal to one process."""
        os.kill(self._pids[process], number)

    def exit_codes(self):
        """Waits until all processes have ended. Exit codes as subprocess has them: -9 after SIGKILL."""
        return [self._wait(lambda p=p: self._exit(p), f"process {p} has not ended")[0] for p in range(len(self._pids))]

    def ended(self, process):
        """When the process ended: seconds since the epoch."""
        return self._exit(process)[1]

    def output(self, process):
        """What the process has printed so far."""
        return (self.directory / f"{process}.stdout").read_text()

    def log(self, process):
        """What the process has written to stderr so far."""
        return (self.directory / f"{process}.stderr").read_text()

    def logs(self):
        """What each process has written to stderr so far."""
        return [self.log(process) for process in range(len(self._pids))]

    def results(self):
        """Waits until all processes have ended with exit code 0; what `finish` was given by each, None: nothing."""
        codes = self.exit_codes()
        assert not any(codes), f"exit codes {codes}\n{self.story()}"
        paths = [self.directory / f"{process}.json" for process in range(len(self._pids))]
        return [json.loads(path.read_text()) if path.exists() else None for path in paths]

    def stop(self):
        """Kills what still runs, and shows that nothing is left behind."""
        for process, pid in enumerate(self._pids):
            if self._exit(process) is None:
                os.kill(pid, signal.SIGKILL)
        self._ends = time.monotonic() + 10
        self.exit_codes()
        assert not (left := _of_sessions(self._pids)), f"processes are left: {left}"
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", self._port))

    def _exit(self, process):
        with contextlib.suppress(FileNotFoundError):
            return json.loads((self.directory / f"{process}.exit").read_text())
        return None

    def _wait_for_text(self, source, text, process):
        def done():
            return self._exit(process) is not None or text in source(process)

        self._wait(done, f"process {process} has not written {text!r}")
        assert text in source(process), f"process {process} ended without {text!r}\n{self.story()}"

    def _wait(self, condition, otherwise):
        while not (value := condition()):
            if time.monotonic() > self._ends:
                self._show_stacks()
                raise TimeoutError(f"{otherwise} in time.\n{self.story()}")
            time.sleep(0.01)
        return value

    def _show_stacks(self):
        """Makes the processes that still run write the stacks of their threads to stderr."""
        for process, pid in enumerate(self._pids):
            if self._exit(process) is None:
                os.kill(pid, signal.SIGUSR1)
        time.sleep(0.5)

    def story(self):
        """What each process did and said, for messages."""
        parts = []
        for process in range(len(self._pids)):
            end = self._exit(process)
            parts.append(f"---- process {process}: {'runs' if end is None else f'ended with {end[0]}'}")
            parts += [text[-_TAIL:] for text in (self.output(process), self.log(process))]
        return "\n".join(parts)


def _of_sessions(pids):
    """The processes that belong to the sessions of `pids`."""
    left = []
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            pid, rest = stat.read_text().split(" ", 1)
            state, _, _, session = rest.rsplit(")", 1)[1].split()[:4]
            if int(session) in pids and state != "Z":
                left.append(int(pid))
    return left


class Processes:
    """Starts programs of several processes, one after the other.

    Args:
      modules: what is imported before the fork.
    """

    def __init__(self, *modules):
        self._server = subprocess.Popen(
            [sys.executable, __file__, *modules], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    @contextlib.contextmanager
    def run(self, directory, target, *, processes=2, devices=2, timeout=TIMEOUT_SECS, env=None, **kwargs):
        """Runs `target`, the text "module:function", in each process, with `kwargs`.

        Args:
          directory: a new working directory of all processes is made here.
          processes: how many.
          devices: of each process.
          timeout: seconds until all are killed.
          env: environment variables of all processes.
          kwargs: JSON values.
        """
        directory = pathlib.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        port = free_port()
        request = dict(target=target, directory=str(directory), processes=processes, devices=devices, kwargs=kwargs)
        print(json.dumps({**request, "port": port, "env": env or {}}), file=self._server.stdin, flush=True)
        program = Program(directory, port, json.loads(self._server.stdout.readline()), timeout)
        try:
            yield program
        finally:
            program.stop()

    def close(self):
        """Ends the process that forks."""
        self._server.stdin.close()
        self._server.stdout.close()
        self._server.wait(timeout=10)


def free_port():
    """A port on which nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


# What follows runs in the process that forks, and in its children.


def is_child():
    """Whether this is one of several processes of a program."""
    return int(os.environ.get("TEST_PROCESSES", 1)) > 1


def address():
    """(coordinator_address, num_processes, process_id) of this process."""
    return f"127.0.0.1:{os.environ['TEST_PORT']}", int(os.environ["TEST_PROCESSES"]), int(os.environ["TEST_PROCESS"])


def join(**kwargs):
    """Calls jax.distributed.initialize; returns the index of this process."""
    coordinator_address, num_processes, process_id = address()
    import jax

    jax.distributed.initialize(coordinator_address, num_processes, process_id, **kwargs)
    return process_id


def finish(result):
    """Leaves a JSON value for `Program.results`."""
    pathlib.Path(f"{os.environ['TEST_PROCESS']}.json").write_text(json.dumps(result))


def _serve():
    for line in sys.stdin:
        request = json.loads(line)
        children = {}
        for process in range(request["processes"]):
            for name in ("stdout", "stderr"):
                pathlib.Path(request["directory"], f"{process}.{name}").touch()
            child = os.fork()
            if child == 0:
                return _become(request, process)
            children[child] = process
        print(json.dumps(list(children)), flush=True)
        while children:
            pid, status = os.wait()
            exit_file = pathlib.Path(request["directory"], f"{children.pop(pid)}.exit")
            exit_file.with_suffix(".new").write_text(json.dumps([os.waitstatus_to_exitcode(status), time.time()]))
            exit_file.with_suffix(".new").rename(exit_file)
    return None


def _become(request, process):
    """Runs the target in this process, which has just been forked."""
    os.setsid()
    os.chdir(request["directory"])
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(os.devnull if number == 0 else f"{process}.{name}", os.O_RDWR), number)
    sys.stdout.reconfigure(line_buffering=True)
    os.environ.update(request["env"])
    os.environ.update(
        TEST_PROCESS=str(process), TEST_PROCESSES=str(request["processes"]), TEST_PORT=str(request["port"])
    )
    faulthandler.register(signal.SIGUSR1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it starts in the background
    import jax

    jax.config.update("jax_num_cpu_devices", request["devices"])
    module, function = request["target"].split(":")
    getattr(importlib.import_module(module), function)(**request["kwargs"])


if __name__ == "__main__":
    # The targets import this file under its own name.
    sys.modules["processes"] = sys.modules["__main__"]
    for name in sys.argv[1:]:
        importlib.import_module(name)
    _serve()

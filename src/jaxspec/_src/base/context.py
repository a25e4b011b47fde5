"""TPUContext: how many hosts and shards there are, and which host this is."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class TPUContext:
    """How many shards and hosts there are, under TPUEstimator's names: `params["context"]`.

    init_fn, input_fn and model_fn get it. In model_fn, whose program is the same on all hosts, what depends on the
    host raises RuntimeError.
    """

    num_replicas: int
    """The number of shards over all hosts."""
    num_hosts: int = 1
    """The number of processes."""
    _host: int | None = 0
    """This process; None in model_fn."""

    @property
    def current_host(self) -> int:
        """The index of this process."""
        if self._host is None:
            raise RuntimeError(
                "This TPUContext instance must not be called from model_fn: it is the same on all hosts."
            )
        return self._host

    @property
    def num_of_replicas_per_host(self) -> int:
        """The number of shards that one process feeds."""
        return self.num_replicas // self.num_hosts

    def current_input_fn_deployment(self) -> tuple[None, int, int, int]:
        """(None, index of this input_fn call, number of calls over all hosts, shards fed by this one).

        TensorFlow has a device name in the first place.
        """
        return None, self.current_host, self.num_hosts, self.num_of_replicas_per_host

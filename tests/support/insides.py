"""What tests look at that no user can see. The only file that reaches into an estimator."""

import jax


def live_state(estimator):
    """The live state, on the devices."""
    with estimator._engine.live_state.lease() as lease:
        return lease.keep()


def programs(estimator):
    """The compiled programs of full batches, in the order in which they were made."""
    return [made.full for made in estimator._engine.programs._made.values()]


def state_on_host(estimator):
    """The live state with NumPy leaves."""
    state = live_state(estimator)
    return jax.device_get(state._replace(rng=jax.random.key_data(state.rng)))

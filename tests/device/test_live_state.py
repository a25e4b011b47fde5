"""The live state: readers hold leases, training takes it, and a state that is read is not donated."""

import threading

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec._src.device.live_state import LiveState


def test_a_leased_state_is_copied_before_it_is_donated():
    live = LiveState()
    assert live.lease() is None
    live.put({"w": jnp.ones(3)}, 7, lambda: "here")
    with live.lease() as lease:
        assert (lease.step, lease.position) == (7, "here")
        assert live.take()["w"].unsafe_buffer_pointer() != lease.state["w"].unsafe_buffer_pointer()
        live.give_back()
    kept = live.lease().keep()
    assert live.take()["w"].unsafe_buffer_pointer() != kept["w"].unsafe_buffer_pointer()
    live.put({"w": jnp.zeros(3)}, 8)
    pointer = live.state["w"].unsafe_buffer_pointer()
    assert live.take()["w"].unsafe_buffer_pointer() == pointer


def test_a_state_is_given_back_unless_its_buffers_are_gone():
    live = LiveState()
    live.put({"w": jnp.ones(3)}, 1)
    live.take()
    live.give_back()
    assert live.lease().step == 1
    donated = jax.jit(lambda x: x + 1, donate_argnums=0)
    live.put({"w": jnp.ones(3)}, 2)
    donated(live.take()["w"])
    live.give_back()
    assert live.lease() is None


def test_a_reader_waits_for_the_state_that_is_being_made():
    live, steps = LiveState(), []
    live.put({"w": jnp.ones(3)}, 1)
    live.take()
    thread = threading.Thread(target=lambda: steps.append(live.lease().step))
    thread.start()
    assert steps == []
    live.put({"w": jnp.ones(3)}, 2)
    thread.join()
    assert steps == [2]


def test_another_thread_s_discard_does_not_take_the_state_from_training():
    live = LiveState()
    live.put({"w": np.ones(3)}, 1)
    old = live.lease()
    live.put({"w": np.ones(3)}, 2)
    live.discard(old)
    assert live.lease().step == 2


def test_a_lease_that_is_closed_twice_ends_once():
    live = LiveState()
    live.put({"w": jnp.ones(3)}, 1)
    first, second = live.lease(), live.lease()
    first.close()
    first.close()
    assert live.take() is not second.state
    live.give_back()
    second.close()
    state = live.state
    assert live.take() is state


def test_a_leased_state_is_reinstated_where_there_is_none():
    live = LiveState()
    live.put({"w": jnp.ones(3)}, 1, lambda: "there")
    lease = live.lease()
    live.discard()
    assert live.lease() is None
    assert (live.state, live.position) == (None, None)
    live.reinstate(lease)
    assert (live.lease().step, live.position) == (1, "there")
    live.put({"w": jnp.ones(3)}, 2)
    live.reinstate(lease)
    assert live.lease().step == 2

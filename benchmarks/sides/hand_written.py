"""The loop that one would write, and the limit of what any loop can reach.

The loop is one `jax.jit` step that donates its state, called without waiting for the one before:
https://docs.jax.dev/en/latest/async_dispatch.html and https://docs.jax.dev/en/latest/buffer_donation.html. The loss is
looked at every 100 steps. There are two kinds, of which the faster one counts: batches are put on the device two ahead,
as `flax.jax_utils.prefetch_to_device` does, or are given to the step as they are.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from targets import HAND
from workloads import batches_of, loss_of

LOOK_EVERY = 100


class HandWritten:
    """Trains, evaluates and predicts with one call for each batch. `ahead`: how many batches are put on the device."""

    def __init__(self, workload, data, ahead):
        self.ahead = ahead
        self.workload, self.batches = workload, batches_of(workload, data)
        self.variables, self.opt_state = fresh_state(workload)
        step = train_step(workload)
        self._step = jax.jit(lambda state, batch: step(state, batch), donate_argnums=0)

        @jax.jit
        def add(variables, totals, features, labels):
            logits = workload.logits(variables, features)
            right = (logits.argmax(-1) == labels).sum()
            return totals[0] + loss_of(logits, labels) * len(labels), totals[1] + right

        @jax.jit
        def predict(variables, features):
            return {"probabilities": jax.nn.softmax(workload.logits(variables, features))}

        self._add, self._predict = add, predict

    def train(self):
        """Trains on the set."""
        state = self.variables, self.opt_state
        source = itertools.chain.from_iterable(itertools.repeat(self.batches, self.workload.passes))
        for i, batch in enumerate(put_ahead(source, self.ahead)):
            state, loss = self._step(state, batch)
            if i % LOOK_EVERY == LOOK_EVERY - 1:
                float(loss)
        self.variables, self.opt_state = jax.block_until_ready(state)

    def evaluate(self):
        """Loss and accuracy of the set."""
        totals = jnp.zeros(()), jnp.zeros((), jnp.int32)
        for features, labels in put_ahead(self.batches, self.ahead):
            totals = self._add(self.variables, totals, features, labels)
        examples = self.workload.batch * self.workload.batches
        return [float(total) / examples for total in totals]

    def predict(self):
        """Yields the predictions of a batch while the device computes those of the next one."""
        waiting = None
        for features, _ in put_ahead(self.batches, self.ahead):
            following = self._predict(self.variables, features)
            if waiting is not None:
                yield jax.device_get(waiting)
            waiting = following
        yield jax.device_get(waiting)

    def predict_one_by_one(self):
        """Yields the prediction of each example."""
        for batch in self.predict():
            for i in range(len(batch["probabilities"])):
                yield {key: values[i] for key, values in batch.items()}


class Scan:
    """The limit: `lax.scan` over batches that are on the device before the clock starts, and one call for many steps.

    See https://docs.jax.dev/en/latest/_autosummary/jax.lax.scan.html.
    """

    def __init__(self, workload, data, steps_per_call=100):
        batches = batches_of(workload, data)
        stacks = [batches[i : i + steps_per_call] for i in range(0, len(batches), steps_per_call)]
        stack = lambda *arrays: jax.device_put(np.stack(arrays))  # noqa: E731
        self.stacks = [jax.tree.map(stack, *each) for each in stacks]
        self.passes = workload.passes
        self.state = fresh_state(workload)
        step = train_step(workload)
        self._steps = jax.jit(lambda state, stack: jax.lax.scan(step, state, stack), donate_argnums=0)

    def train(self):
        """Trains on the set."""
        for _ in range(self.passes):
            for stack in self.stacks:
                self.state, _ = self._steps(self.state, stack)
        jax.block_until_ready(self.state)


def fresh_state(workload):
    """(variables, state of the optimizer)."""
    variables = workload.variables()
    return variables, workload.optimizer().init(variables)


def train_step(workload):
    """One update, as a pure function of ((variables, state of the optimizer), batch)."""
    optimizer = workload.optimizer()

    def step(state, batch):
        variables, opt_state = state
        features, labels = batch
        loss, grads = jax.value_and_grad(lambda v: loss_of(workload.logits(v, features), labels))(variables)
        updates, opt_state = optimizer.update(grads, opt_state, variables)
        return (optax.apply_updates(variables, updates), opt_state), loss

    return step


def both_kinds(workload, data):
    """{name of the side: loop}."""
    return {f"{HAND}, device_put": HandWritten(workload, data, 2), f"{HAND}, NumPy": HandWritten(workload, data, 0)}


def put_ahead(batches, ahead):
    """Yields the batches as arrays of the device, while the next ones are on their way; with 0 as they are."""
    if not ahead:
        yield from batches
        return
    source = iter(batches)
    waiting = [jax.device_put(batch) for batch in itertools.islice(source, ahead)]
    while waiting:
        yield waiting.pop(0)
        waiting += [jax.device_put(batch) for batch in itertools.islice(source, 1)]

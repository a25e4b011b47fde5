"""Steps a second on 1, 2, 4 and 8 devices, against a plain `shard_map` of the same step.

    python benchmarks/devices.py [--quick] [--rounds 5]

The MLP with batches of 128 in all. On a CPU the devices are virtual ones that share its cores: what is seen is the
cost of splitting the work, and no speed-up. The hand-written side is one jitted `shard_map` of a step, which averages
the gradients with `lax.pmean`: https://docs.jax.dev/en/latest/notebooks/shard_map.html.
"""

import dataclasses
import logging

import jax
import optax
from harness import Benchmark, rate
from jax.sharding import NamedSharding, PartitionSpec
from sides import estimator
from sides.hand_written import LOOK_EVERY, fresh_state
from workloads import batches_of, loss_of, workload


class ShardMap:
    """A hand-written data-parallel loop."""

    def __init__(self, work, data, devices):
        mesh = jax.make_mesh((len(devices),), ("data",), devices=devices)
        split, whole = PartitionSpec("data"), PartitionSpec()
        optimizer = work.optimizer()

        def step(state, features, labels):
            variables, opt_state = state
            loss, grads = jax.value_and_grad(lambda v: loss_of(work.logits(v, features), labels))(variables)
            loss, grads = jax.lax.pmean((loss, grads), "data")
            updates, opt_state = optimizer.update(grads, opt_state, variables)
            return (optax.apply_updates(variables, updates), opt_state), loss

        mapped = jax.shard_map(
            step, mesh=mesh, in_specs=(whole, split, split), out_specs=(whole, whole), check_vma=False
        )
        self.step = jax.jit(mapped, donate_argnums=0)
        self.sharding, self.batches, self.steps = NamedSharding(mesh, split), batches_of(work, data), work.steps
        self.state = jax.device_put(fresh_state(work), NamedSharding(mesh, whole))

    def train(self):
        """Trains on the set."""
        waiting = jax.device_put(self.batches[0], self.sharding)
        for i in range(self.steps):
            batch, waiting = waiting, jax.device_put(self.batches[(i + 1) % len(self.batches)], self.sharding)
            self.state, loss = self.step(self.state, *batch)
            # Many collectives that wait may lock the threads of CPU devices.
            if i % (10 if self.sharding.mesh.devices.flat[0].platform == "cpu" else LOOK_EVERY) == 0:
                loss.block_until_ready()
        jax.block_until_ready(self.state)


def main():
    benchmark = Benchmark(__doc__, rounds=5)
    logging.getLogger("jaxspec").setLevel(logging.ERROR)
    jax.config.update("jax_num_cpu_devices", 8)
    work = dataclasses.replace(workload("MLP", benchmark.quick), passes=benchmark.pick(5, 1))
    data = work.data()
    sides, pairs = {}, []
    for count in (1, 2, 4, 8):
        if count <= jax.device_count():
            by_hand = ShardMap(work, data, jax.devices()[:count])
            ours = estimator.Estimator(work, data, tpu={"num_shards": count})
            pairs.append((f"jaxspec @ {count}", f"shard_map @ {count}"))
            sides |= {pairs[-1][0]: rate(ours.train, work.steps), pairs[-1][1]: rate(by_hand.train, work.steps)}
    benchmark.compare("train on several devices, MLP", "steps/s", sides, pairs=pairs, x="devices")
    benchmark.save()


if __name__ == "__main__":
    main()

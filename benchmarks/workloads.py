"""The models, and the data that is made for them. All sides train these with Adam, on cross entropy."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import optax

LEARNING_RATE = 1e-3
CLASSES = 10
VOCABULARY, LENGTH, WIDTH, HEADS, LAYERS = 256, 32, 128, 4, 4  # of the transformer
CHANNELS = (8, 16)  # of the CNN


class MLP(nn.Module):
    """One hidden layer."""

    hidden: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(CLASSES)(nn.relu(nn.Dense(self.hidden)(x)))


class CNN(nn.Module):
    """Two convolutions on 28 x 28 images."""

    @nn.compact
    def __call__(self, x):
        for channels in CHANNELS:
            x = nn.avg_pool(nn.relu(nn.Conv(channels, (3, 3))(x)), (2, 2), (2, 2))
        return nn.Dense(CLASSES)(x.reshape(len(x), -1))


class Transformer(nn.Module):
    """Four layers that predict the next token, with no positions: the tokens are random."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(VOCABULARY, WIDTH)(tokens)
        mask = nn.make_causal_mask(tokens)
        for _ in range(LAYERS):
            y = nn.LayerNorm(epsilon=1e-6)(x)
            x = x + nn.MultiHeadDotProductAttention(HEADS)(y, y, mask=mask)
            y = nn.LayerNorm(epsilon=1e-6)(x)
            x = x + nn.Dense(WIDTH)(nn.relu(nn.Dense(4 * WIDTH)(y)))
        return nn.Dense(VOCABULARY)(nn.LayerNorm(epsilon=1e-6)(x))


@dataclasses.dataclass(frozen=True)
class Workload:
    """A model and the size of its work: one run trains on all batches of the set, `passes` times."""

    name: str
    module: nn.Module
    row: tuple[int, ...]
    batch: int
    batches: int
    passes: int = 1

    @property
    def steps(self):
        """Updates in a run."""
        return self.batches * self.passes

    def data(self):
        """(x, y): the examples of all batches."""
        rng = np.random.default_rng(0)
        examples = self.batch * self.batches
        if isinstance(self.module, Transformer):
            tokens = rng.integers(0, VOCABULARY, (examples, LENGTH + 1)).astype(np.int32)
            return np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:])
        x = rng.standard_normal((examples, *self.row), np.float32)
        return x, rng.integers(0, CLASSES, examples).astype(np.int32)

    def variables(self):
        """Fresh ones."""
        x, _ = dataclasses.replace(self, batches=1).data()
        return jax.jit(self.module.init)(jax.random.key(0), x)

    def optimizer(self):
        """The same for all."""
        return optax.adam(LEARNING_RATE)

    def logits(self, variables, features):
        """`[batch, ..., classes]`."""
        return self.module.apply(variables, features)


def loss_of(logits, labels):
    """Mean cross entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def odd(logits):
    """How likely the class is an odd one: what AUC is computed of."""
    return jax.nn.softmax(logits)[..., 1::2].sum(-1)


def batches_of(workload, data):
    """The batches in order, as views."""
    x, y = data
    starts = range(0, len(x), workload.batch)
    return [(x[start : start + workload.batch], y[start : start + workload.batch]) for start in starts]


def workload(name, quick=False):
    """The workload of that name; tiny with `quick`."""
    found = {
        "MLP": Workload("MLP", MLP(128), (784,), batch=128, batches=100, passes=20),
        "tiny": Workload("tiny", MLP(16), (16,), batch=8, batches=8_000, passes=3),
        "CNN": Workload("CNN", CNN(), (28, 28, 1), batch=128, batches=50, passes=4),
        "transformer": Workload("transformer", Transformer(), (LENGTH,), batch=16, batches=50, passes=2),
    }[name]
    return dataclasses.replace(found, batches=10, passes=1) if quick else found


NAMES = ("MLP", "tiny", "CNN", "transformer")

"""The FLOPs of a traced function: by hand, and against XLA's own count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxspec._src.step.flops import count_flops

M, K, N = 6, 10, 14
LEFT, RIGHT = np.ones((M, K), np.float32), np.ones((K, N), np.float32)
PRODUCT = 2 * M * K * N
SQUARE = np.ones((K, K), np.float32)


def count(fn, *args):
    return count_flops(jax.make_jaxpr(fn)(*args).jaxpr)


@pytest.mark.parametrize(
    ("name", "fn", "args", "flops"),
    [
        ("a product", jnp.matmul, (LEFT, RIGHT), PRODUCT),
        ("a batch of products", jnp.matmul, (np.ones((3, M, K)), np.ones((3, K, N))), 3 * PRODUCT),
        ("two contracted axes", lambda a, b: jnp.einsum("abc,bcd->ad", a, b), (np.ones((2, 3, 4)), np.ones((3, 4, 5))), 2 * 2 * 3 * 4 * 5),
        ("under jit", jax.jit(jnp.matmul), (LEFT, RIGHT), PRODUCT),
        ("under remat", jax.checkpoint(jnp.matmul), (LEFT, RIGHT), PRODUCT),
        ("a gradient: twice the product", jax.grad(lambda a, b: (a @ b).sum(), (0, 1)), (LEFT, RIGHT), 3 * PRODUCT),
        ("elementwise", lambda a: jnp.tanh(a) * 2, (LEFT,), 0),
        ("a scan", lambda a: lax.scan(lambda x, _: (x @ SQUARE, None), a, None, length=7)[0], (LEFT,), 7 * 2 * M * K * K),
        ("a scan in a scan", lambda a: lax.scan(lambda x, _: lax.scan(lambda y, _: (y @ SQUARE, None), x, None, length=5), a, None, length=7)[0], (LEFT,), 35 * 2 * M * K * K),
        ("a loop of fixed length", lambda a: lax.fori_loop(0, 7, lambda _, x: x @ SQUARE, a), (LEFT,), 7 * 2 * M * K * K),
        ("a loop of unknown length", lambda a, n: lax.fori_loop(0, n, lambda _, x: x @ SQUARE, a), (LEFT, 7), 2 * M * K * K),
        ("the dearest branch", lambda a, p: lax.cond(p, lambda x: x @ SQUARE, lambda x: x, a), (LEFT, True), 2 * M * K * K),
        ("a convolution", lambda x, w: lax.conv(x, w, (1, 1), "VALID"), (np.ones((2, 3, 8, 9)), np.ones((5, 3, 3, 2))), 2 * 2 * 5 * 3 * 6 * 8 * 3 * 2),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)  # fmt: skip
def test_by_hand(name, fn, args, flops):
    assert count(fn, *args) == flops


def convolution(window_strides=(1, 1), padding="SAME", **kwargs):
    layout = ("NHWC", "HWIO", "NHWC")
    return lambda x, w: lax.conv_general_dilated(x, w, window_strides, padding, dimension_numbers=layout, **kwargs)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"padding": "VALID"},
        {"window_strides": (2, 3)},
        {"rhs_dilation": (2, 2)},
        {"lhs_dilation": (2, 3), "padding": ((1, 2), (3, 1))},
        {"feature_group_count": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("differentiate", [False, True])
def test_convolutions_and_their_gradients_count_as_xla_counts_them(kwargs, differentiate):
    x = np.ones((4, 9, 11, 6), np.float32)
    w = np.ones((3, 5, 6 // kwargs.get("feature_group_count", 1), 8), np.float32)
    fn = convolution(**kwargs)
    if differentiate:
        fn = jax.grad(lambda x, w: (convolution(**kwargs)(x, w) ** 2).sum(), (0, 1))
    of_xla = jax.jit(fn).lower(x, w).cost_analysis()["flops"]
    elementwise = 4 * convolution(**kwargs)(x, w).size if differentiate else 0
    assert of_xla - elementwise <= count(fn, x, w) <= of_xla

"""Counts the floating point operations (FLOPs) of a traced function."""

import math

import jax
import jax.extend
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var


def count_flops(jaxpr: Jaxpr) -> int:
    """The FLOPs of the matrix products and convolutions of a jaxpr; a multiplication and an addition are two.

    The body of a `lax.scan` counts as often as it runs: XLA's `cost_analysis()` counts it once. That of a
    `lax.while_loop` counts once, the most expensive branch of a `lax.cond` counts, and a Pallas kernel as its
    `cost_estimate` says. Nothing else counts, such as elementwise operations and custom calls.
    """
    return sum(map(_flops_of, jaxpr.eqns))


def _flops_of(equation: JaxprEqn) -> int:
    params, times = equation.params, 1
    match equation.primitive.name:
        case "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            lhs, out = _shape(equation.invars[0]), _shape(equation.outvars[0])
            flops: int = 2 * math.prod(out) * math.prod(lhs[axis] for axis in contracted)
            return flops
        case "conv_general_dilated":
            return _flops_of_convolution(equation)
        case "pallas_call":
            estimate = params["cost_estimate"]
            return 0 if estimate is None else int(estimate.flops)
        case "cond":
            return max(count_flops(branch.jaxpr) for branch in params["branches"])
        case "scan":
            times = params["length"]
    return times * sum(map(count_flops, jax.extend.core.jaxprs_in_params(params)))


def _flops_of_convolution(equation: JaxprEqn) -> int:
    """As XLA counts them: products with padding, and with the gaps of a dilated input, do not count."""
    params, numbers = equation.params, equation.params["dimension_numbers"]
    (lhs, rhs), out = map(_shape, equation.invars), _shape(equation.outvars[0])
    products = 2 * out[numbers.out_spec[0]] * out[numbers.out_spec[1]] * rhs[numbers.rhs_spec[1]]
    for i, (stride, (low, _)) in enumerate(zip(params["window_strides"], params["padding"], strict=True)):
        inputs, kernel, outputs = (
            shape[spec[2 + i]]
            for shape, spec in ((lhs, numbers.lhs_spec), (rhs, numbers.rhs_spec), (out, numbers.out_spec))
        )
        gap = params["lhs_dilation"][i]
        at = stride * np.arange(outputs)[:, None] + params["rhs_dilation"][i] * np.arange(kernel) - low
        products *= np.count_nonzero((at >= 0) & (at <= gap * (inputs - 1)) & (at % gap == 0))
    return int(products)


def _shape(variable: Var | Literal) -> tuple[int, ...]:
    assert isinstance(variable.aval, jax.core.ShapedArray)
    shape: tuple[int, ...] = variable.aval.shape
    return shape

"""How strictly JAX mixes types, and how long it compiles."""

import contextlib

import jax
import optax


@contextlib.contextmanager
def quick_compile(enabled):
    """Half the compile time; the float32 case is compiled as users compile it."""
    jax.config.update("jax_disable_most_optimizations", enabled)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)


def lenient(tx):
    """An optax chain that may mix types, as optax.adam does; the rest of a step stays under strict
    rules.
    """
    update_fn = optax.with_extra_args_support(tx).update

    def update(grads, state, params=None, **extra):
        with jax.numpy_dtype_promotion("standard"):
            return update_fn(grads, state, params, **extra)

    return optax.GradientTransformationExtraArgs(tx.init, update)

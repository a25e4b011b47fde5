"""The scenarios of the recorded transcripts by name."""

SCENARIOS = {}
"""Name to `(function, reason)`: the function of a `Transcript` and the numbers of the case; the reason why it has a
meaning with `use_tpu=False` alone, or None."""


def scenario(name, *, fallback_only=None):
    """Registers a function as what happens in the case of that name."""

    def register(fn):
        SCENARIOS[name] = (fn, fallback_only)
        return fn

    return register

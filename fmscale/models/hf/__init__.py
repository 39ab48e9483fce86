"""Hugging Face's names, config and weights, both ways, for Llama, Mistral, Qwen 2 and 3, Gemma 2 and 3.

- `family.py`   the part of a family; rotary positions in old and new configs
- `llama.py`, `qwen.py`, `gemma.py`  the families
- `convert.py`  a config.json to a `ModelConfig` and back; the names of tensors
- `folder.py`   a folder of config.json and safetensors, opened
"""

from fmscale.models.hf.convert import from_hf_config, hf_config, hf_names
from fmscale.models.hf.folder import HfFolder, open_hf_folder

__all__ = ["HfFolder", "from_hf_config", "hf_config", "hf_names", "open_hf_folder"]

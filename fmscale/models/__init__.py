"""Models as plain modules: they know nothing of ranks, devices or data.

- `protocol.py` the model of a config: our decoder, or that of a class of the user's own
- `decoder.py`  the decoder of the families Llama, Qwen and Gemma
- `layers/`     its layers, shared with other models
- `cache.py`    keys and values of the tokens read so far, for generation
- `shared.py`   contexts that several continuations share, for scoring
- `weights.py`  initial weights from a generator; weights by name from another source
- `hf/`         Hugging Face's names, config and weights, both ways
- `lora.py`     low-rank adapters around the linear layers of a model
- `peft.py`     their names and config in the library PEFT, both ways
"""

from fmscale.models.decoder import Decoder
from fmscale.models.protocol import OwnModel, build, parameters_of
from fmscale.models.weights import load_weights

__all__ = ["Decoder", "OwnModel", "build", "load_weights", "parameters_of"]

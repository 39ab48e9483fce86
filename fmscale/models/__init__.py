"""Models as plain modules: they know nothing of ranks, devices or data.

- `protocol.py` the model of a config: our decoder, or that of a class of the user's own
- `decoder.py`  the decoder of the Llama family
- `layers/`     its layers, shared with other models
- `cache.py`    keys and values of the tokens read so far, for generation
- `shared.py`   contexts that several continuations share, for scoring
- `weights.py`  initial weights from a generator; weights by name from another source
- `hf.py`       Hugging Face's names, config and weights, both ways
"""

from fmscale.models.decoder import Decoder
from fmscale.models.protocol import OwnModel, build, parameters_of
from fmscale.models.weights import load_weights

__all__ = ["Decoder", "OwnModel", "build", "load_weights", "parameters_of"]

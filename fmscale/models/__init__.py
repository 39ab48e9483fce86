"""Models as plain modules: they know nothing of ranks, devices or data.

- `decoder.py`  the decoder of the Llama family
- `layers/`     its layers, shared with other models
- `cache.py`    keys and values of the tokens read so far, for generation
- `weights.py`  initial weights from a generator; weights by name from another source
- `hf.py`       Hugging Face's names, config and weights, both ways
"""

from fmscale.models.decoder import Decoder, build
from fmscale.models.weights import load_weights

__all__ = ["Decoder", "build", "load_weights"]

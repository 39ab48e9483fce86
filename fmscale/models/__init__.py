"""Models as plain modules: they know nothing of ranks, devices or data."""

from fmscale.models.decoder import Decoder, build
from fmscale.models.weights import load_weights

__all__ = ["Decoder", "build", "load_weights"]

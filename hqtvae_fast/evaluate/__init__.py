"""How good pictures are: distances between sets, fidelity of reconstructions, use of codes.

pictures = open_pictures("samples/")
features = open_extractor("efficientnet-lite0", device="cuda")
parts = [measure(pictures, features, span) for span in spans(len(pictures), workers)]  # anywhere, in any order
state = merge(parts)  # the same as of one worker
frechet_distance(state.moments.gaussian(), reference.gaussian)
"""

from hqtvae_fast.evaluate.extractors import Extractor, open_extractor
from hqtvae_fast.evaluate.frechet import Gaussian, Moments, frechet_distance
from hqtvae_fast.evaluate.manifold import precision_recall
from hqtvae_fast.evaluate.pictures import Pictures, open_pictures
from hqtvae_fast.evaluate.reference import Reference, read_reference, write_reference
from hqtvae_fast.evaluate.set_state import SetState, measure, merge, spans

__all__ = [
    "Extractor",
    "Gaussian",
    "Moments",
    "Pictures",
    "Reference",
    "SetState",
    "frechet_distance",
    "measure",
    "merge",
    "open_extractor",
    "open_pictures",
    "precision_recall",
    "read_reference",
    "spans",
    "write_reference",
]

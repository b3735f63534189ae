"""Pictures for training: in an order, with crops and captions, that a run can be resumed in exactly.

source = open_source("shards/train-{000..099}.tar")
dataset = PictureDataset(source, 256, condition="text", caption=EMOJI, flip=True, seed=0)
stream = PictureStream(len(dataset), batch_size=512, seed=0, rank=rank, world=world)
stream.seek(seen)  # pictures that the run has used so far
for batch in make_loader(dataset, stream, workers=8, device="cuda"):  # without end
    ...  # batch.images, batch.labels or batch.captions, batch.keys, batch.broken
"""

from hqtvae_fast.train.data.captions import CAPTIONS, EMOJI, PLAIN, CaptionTemplate, caption_template
from hqtvae_fast.train.data.coded import CodedPictures
from hqtvae_fast.train.data.dataset import (
    Content,
    Draw,
    PictureDataset,
    Sample,
    Stored,
    UnreadableError,
    all_captions,
)
from hqtvae_fast.train.data.facts import Facts, survey
from hqtvae_fast.train.data.loader import Batch, BrokenCount, PictureStream, collate, make_loader
from hqtvae_fast.train.data.selection import Selection, class_names, select, whole_of
from hqtvae_fast.train.data.sources import ClassFolder, Source, are_codes, open_source
from hqtvae_fast.train.data.split import hold_out

__all__ = [
    "CAPTIONS",
    "EMOJI",
    "PLAIN",
    "Batch",
    "BrokenCount",
    "CaptionTemplate",
    "ClassFolder",
    "CodedPictures",
    "Content",
    "Draw",
    "Facts",
    "PictureDataset",
    "PictureStream",
    "Sample",
    "Selection",
    "Source",
    "Stored",
    "UnreadableError",
    "all_captions",
    "are_codes",
    "caption_template",
    "class_names",
    "collate",
    "hold_out",
    "make_loader",
    "open_source",
    "select",
    "survey",
    "whole_of",
]

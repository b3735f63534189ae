"""Pictures for training: in an order, with crops and captions, that a run can be resumed in exactly.

source = open_source("shards/train-{000..099}.tar")
dataset = PictureDataset(source, 256, condition="text", caption=EMOJI, flip=True, seed=0)
sampler = EpochSampler(len(dataset), batch_size=512, seed=0, rank=rank, world=world)
loader = make_loader(dataset, sampler, workers=8, device="cuda")
for epoch in range(first_epoch, epochs):
    sampler.seek(epoch, first_batch if epoch == first_epoch else 0)
    for batch in loader:
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
from hqtvae_fast.train.data.loader import Batch, BrokenCount, EpochSampler, collate, make_loader
from hqtvae_fast.train.data.selection import Selection, class_names, select
from hqtvae_fast.train.data.sources import ClassFolder, Source, open_source

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
    "EpochSampler",
    "PictureDataset",
    "Sample",
    "Selection",
    "Source",
    "Stored",
    "UnreadableError",
    "all_captions",
    "caption_template",
    "class_names",
    "collate",
    "make_loader",
    "open_source",
    "select",
]

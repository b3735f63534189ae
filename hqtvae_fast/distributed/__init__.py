"""Sampling with many processes: who draws what, and the shards that they fill together."""

from hqtvae_fast.distributed.sample_shards import SampleShards, SampleSpec
from hqtvae_fast.distributed.subjects import Subjects
from hqtvae_fast.distributed.team import Team, join_team

__all__ = ["SampleShards", "SampleSpec", "Subjects", "Team", "join_team"]

"""Operators on token tensors: score, group, match, reorder, merge. They know no model."""

from mtrkit.ops.group import split_by_rank
from mtrkit.ops.match import Match, Similarity, match_nearest
from mtrkit.ops.merge import merge_sizes, merge_tokens, unmerge_tokens
from mtrkit.ops.reorder import token_map
from mtrkit.ops.rows import take
from mtrkit.ops.score import ChannelReduction, channel_score, class_score
from mtrkit.ops.stream import continue_stream, open_stream, reduce_stream, restore_stream, stream_tokens

__all__ = [
    "ChannelReduction",
    "Match",
    "Similarity",
    "channel_score",
    "class_score",
    "continue_stream",
    "match_nearest",
    "merge_sizes",
    "merge_tokens",
    "open_stream",
    "reduce_stream",
    "restore_stream",
    "split_by_rank",
    "stream_tokens",
    "take",
    "token_map",
    "unmerge_tokens",
]

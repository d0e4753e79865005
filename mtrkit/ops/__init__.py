"""Operators on token tensors: score, group, match, reorder, merge. They know no model."""

from mtrkit.ops.chained import (
    Append,
    add_in_chain,
    append_reduction,
    foresee_reduction,
    know_reduction,
    merge_by_turns,
    merge_neighbors,
    reads_of,
    split_and_merge,
)
from mtrkit.ops.gaps import count_gaps, frame_of, original_positions, remember_dropped, sum_gaps
from mtrkit.ops.group import in_sequence, rank_tokens, split_by_rank, without
from mtrkit.ops.lengths import Lengths, count_lengths
from mtrkit.ops.match import Links, Similarity, match_nearest, match_neighbors, pair_similarity, strongest_links
from mtrkit.ops.merge import merge_sizes, merge_tokens, unmerge_tokens
from mtrkit.ops.noise import noise, permutation, shuffled
from mtrkit.ops.reorder import (
    exact_slots,
    hold_special,
    middle_slots,
    move_special,
    scaled_slots,
    spread_places,
    token_map,
)
from mtrkit.ops.score import ChannelReduction, channel_score, class_score, standardize
from mtrkit.ops.stream import (
    check_stream,
    correct_stream,
    nothing_dropped,
    open_stream,
    reduce_stream,
    reduce_sum,
    restore_stream,
    restore_sum,
    stream_tokens,
    with_residual,
)
from mtrkit.ops.tensors import columns, columns_without, comparable, take
from mtrkit.ops.weigh import successive_weights

__all__ = [
    "Append",
    "ChannelReduction",
    "Lengths",
    "Links",
    "Similarity",
    "add_in_chain",
    "append_reduction",
    "channel_score",
    "check_stream",
    "class_score",
    "columns",
    "columns_without",
    "comparable",
    "correct_stream",
    "count_gaps",
    "count_lengths",
    "exact_slots",
    "foresee_reduction",
    "frame_of",
    "hold_special",
    "in_sequence",
    "know_reduction",
    "match_nearest",
    "match_neighbors",
    "merge_by_turns",
    "merge_neighbors",
    "merge_sizes",
    "merge_tokens",
    "middle_slots",
    "move_special",
    "noise",
    "nothing_dropped",
    "open_stream",
    "original_positions",
    "pair_similarity",
    "permutation",
    "rank_tokens",
    "reads_of",
    "reduce_stream",
    "reduce_sum",
    "remember_dropped",
    "restore_stream",
    "restore_sum",
    "scaled_slots",
    "shuffled",
    "split_and_merge",
    "split_by_rank",
    "spread_places",
    "standardize",
    "stream_tokens",
    "strongest_links",
    "successive_weights",
    "sum_gaps",
    "take",
    "token_map",
    "unmerge_tokens",
    "with_residual",
    "without",
]

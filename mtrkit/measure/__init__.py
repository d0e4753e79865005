"""Accuracy, speed and what they were measured on: plain functions that the command line and benchmarks are made of.

Whole evaluations are in modules of their own: ``candidates`` (what is measured), ``evaluation`` (one row each),
``results`` (the file of rows) and ``report`` (tables).
"""

from mtrkit.measure.accuracy import Accuracy, batches, check_classes, predict, score
from mtrkit.measure.clips import ClipPreprocess, open_clips
from mtrkit.measure.images import ImageSet, image_folder, read_image
from mtrkit.measure.machine import describe_machine, device_name, version_of
from mtrkit.measure.memory import RunPass, keep_freed_memory, peak_memory
from mtrkit.measure.parity import Parity, check_backend
from mtrkit.measure.precision import PRECISIONS, Precision
from mtrkit.measure.preprocess import INTERPOLATIONS, Preprocess, preprocess_for
from mtrkit.measure.shards import image_shards
from mtrkit.measure.sources import input_size_of, open_data, open_images, preprocess_of, takes_clips
from mtrkit.measure.statistics import Difference, paired_difference, wilson_interval
from mtrkit.measure.throughput import Timing, forward_pass, interleave, summarise
from mtrkit.measure.video import read_clip, read_frames, read_timed_clip
from mtrkit.measure.weights import twin, weights_digest

__all__ = [
    "INTERPOLATIONS",
    "PRECISIONS",
    "Accuracy",
    "ClipPreprocess",
    "Difference",
    "ImageSet",
    "Parity",
    "Precision",
    "Preprocess",
    "RunPass",
    "Timing",
    "batches",
    "check_backend",
    "check_classes",
    "describe_machine",
    "device_name",
    "forward_pass",
    "image_folder",
    "image_shards",
    "input_size_of",
    "interleave",
    "keep_freed_memory",
    "open_clips",
    "open_data",
    "open_images",
    "paired_difference",
    "peak_memory",
    "predict",
    "preprocess_for",
    "preprocess_of",
    "read_clip",
    "read_frames",
    "read_image",
    "read_timed_clip",
    "score",
    "summarise",
    "takes_clips",
    "twin",
    "version_of",
    "weights_digest",
    "wilson_interval",
]

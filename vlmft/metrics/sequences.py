"""Lengths of alignments, a whole row of the table in one integer: long texts cost next to nothing."""

from __future__ import annotations

from collections.abc import Hashable, Sequence


def _positions(items: Sequence[Hashable]) -> dict[Hashable, int]:
    masks: dict[Hashable, int] = {}
    for i, item in enumerate(items):
        masks[item] = masks.get(item, 0) | 1 << i
    return masks


def lcs_length(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence (Hyyrö 2004, "Bit-parallel LCS-length computation revisited")."""
    masks, whole = _positions(first), (1 << len(first)) - 1
    open_places = whole
    for item in second:
        hits = open_places & masks.get(item, 0)
        open_places = ((open_places + hits) | (open_places - hits)) & whole
    return len(first) - open_places.bit_count()


def edit_distance(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Levenshtein distance (Myers 1999, in the form of Hyyrö 2003)."""
    if not first:
        return len(second)
    masks, whole, last = _positions(first), (1 << len(first)) - 1, 1 << len(first) - 1
    up, down, distance = whole, 0, len(first)  # where the column's values rise, where they fall
    for item in second:
        equal = masks.get(item, 0)
        diagonal = (((equal & up) + up) ^ up) | equal
        right_up, right_down = down | ~(diagonal | up) & whole, up & diagonal
        distance += bool(right_up & last) - bool(right_down & last)
        right_up, right_down = (right_up << 1 | 1) & whole, right_down << 1 & whole
        vertical = equal | down
        up, down = right_down | ~(vertical | right_up) & whole, right_up & vertical
    return distance

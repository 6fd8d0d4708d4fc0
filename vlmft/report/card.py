"""The data card in the report, from data_card.json (its keys: vlmft/run/card.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlmft.evaluation.numbers import count, share, shortened
from vlmft.report.charts import Chart, Columns, Lane, Lanes, Scale, nice_step

MAX_COLUMNS = 12
"""Values, or ranges of values, that get columns of their own."""
SHOWN_ANSWERS = 6
SPREADS = {
    "Answer length": ("answer_words", "Words in an answer."),
    "Visual tokens": ("visual_tokens", "Tokens that an image takes under this model, each different image once."),
    "Questions per image": ("questions_per_image", "Rows that show one and the same image."),
}
"""Title -> key of a split in the card, and what it is."""
LONGEST_NAME = 16


def card_charts(card: Mapping[str, Any]) -> tuple[Chart, ...]:
    """How answers and images spread; what has one value throughout is no distribution."""
    splits: Mapping[str, Mapping[str, Any]] = card["splits"]
    found: list[Chart] = [_answers(card["answers"], list(splits))]
    for title, (key, caption) in SPREADS.items():
        spreads = {split: values[key] for split, values in splits.items() if values[key]["n"]}
        if len({value for spread in spreads.values() for value in spread["counts"]}) > 1:
            found.append(_spread(title, spreads, caption))
    return tuple(found)


def card_words(card: Mapping[str, Any]) -> dict[str, str]:
    """What the source was read as, each split, and what was looked for -> what came out, in words."""
    splits = {split: _split(values) for split, values in card["splits"].items()}
    return {**_source(card["source"]), **splits, **findings(card)}


def _source(source: Mapping[str, Any]) -> dict[str, str]:
    listed = {
        "Read from": [f"{split}: {origin}" for split, origin in source["splits"].items()],
        "Read as": [f"{role}: {column}" for role, column in source["roles"].items()],
        "Not read": [f"{name}, such as {value}" for name, value in source["unread"].items()],
        "Noted": source["notes"],
    }
    return {heading: "; ".join(told) + "." for heading, told in listed.items() if told}


def findings(card: Mapping[str, Any]) -> dict[str, str]:
    """What was looked for in the rows -> what came out, in words."""
    between = card["near_duplicates"]["between"]
    found = {}
    if between:
        found["Overlap"] = "None, no image and no row stands in two splits."
        found["Near-duplicates"] = _near_duplicates(card["near_duplicates"])
    told = [f"{split} {shown['sentence']}" for split, shown in card.get("readable_answers", {}).items()]
    if told:
        found["Answers in their own prompt"] = "; ".join(told) + "."
    found["Rows that fit"] = _fit(card["rows_that_fit"])
    return found


def _split(values: Mapping[str, Any]) -> str:
    rows, looked_at = values["rows"], values["looked_at"]
    if looked_at < rows:
        what = f"{count(rows)} rows, of which a seeded sample of {count(looked_at)} was looked at"
    else:
        what = f"{count(rows)} rows"
    parts = [what, f"{count(values['images'])} different images", f"{count(values['answers'])} different answers"]
    for key, name in (("classes", "classes"), ("repeated", "repeated rows"), ("bad", "rows that cannot be read")):
        parts += [f"{count(values[key])} {name}"] if values[key] else []
    return ", ".join(parts) + "."


def _near_duplicates(found: Mapping[str, Any]) -> str:
    some = [
        f"{count(pair[key])} {what.format(*pair['splits'])} {'looks' if pair[key] == 1 else 'look'} "
        f"like one of {pair['splits'][0]}"
        for key, one, several in (("images", "image of {1}", "images of {1}"), ("mirrored", *2 * ["of {1}, mirrored,"]))
        for pair in found["between"]
        if pair.get(key)
        for what in [one if pair[key] == 1 else several]
    ]
    told = "; ".join(some) if some else "No image looks like one of another split, mirrored or not"
    told += ". Not looked for: pictures cropped by more than 1\u00a0% a side, turned, or of other colours."
    if found["largest_group"] is not None:
        told += f" Near-duplicates are kept together; the largest group holds {count(found['largest_group'])} images."
    return told


def _fit(fit: Mapping[str, Any]) -> str:
    looked_at, lost, tokens = fit["looked_at"], fit["too_long"] + fit["refused"], fit["tokens"]
    told = f"All {count(looked_at)} that were looked at."
    if lost:
        told = f"{count(lost)} of {count(looked_at)} that were looked at do not, such as {fit['first']['row']}: "
        told += f"{fit['first']['reason'].rstrip('.')}."
    if tokens["n"]:
        told += f" {'The others' if lost else 'They'} take {count(tokens['median'])} tokens (median), "
        told += f"{count(tokens['max'])} at most."
    return f"{told} The model takes {count(fit['limit_tokens'])}."


def _answers(answers: Mapping[str, Mapping[str, float]], splits: Sequence[str]) -> Lanes:
    lanes = [
        Lane("" if index else name, share(found[split]), found[split], mood=f"series-{index}", is_bar=True, group=name)
        for answer, found in list(answers.items())[:SHOWN_ANSWERS]
        for name in [shortened(" ".join(answer.split()), LONGEST_NAME)]
        for index, split in enumerate(splits)
    ]
    caption = "The most frequent answers, and the share of each split's rows that has them."
    highest = max((lane.value or 0.0 for lane in lanes), default=0.0)
    return Lanes(lanes, Scale(0.0, max(0.01, highest)), caption, title="Answers", legend=splits)


def _spread(title: str, spreads: Mapping[str, Mapping[str, Any]], caption: str) -> Columns:
    names, shares = binned({split: spread["counts"] for split, spread in spreads.items()})
    middles = "; ".join(
        f"{split}: {count(found['min'])} to {count(found['max'])}, median {count(found['median'])}, "
        f"95\u00a0% at most {count(found['p95'])}"
        for split, found in spreads.items()
    )
    parts = (
        f"{split}: " + ", ".join(f"{name} {share(part)}" for name, part in zip(names, values, strict=True) if part)
        for split, values in shares.items()
    )
    return Columns(title, f"{title}. {'; '.join(parts)}", f"{caption} {middles}.", names, shares)


def binned(counts: Mapping[str, Mapping[str, int]]) -> tuple[list[str], dict[str, list[float]]]:
    """Columns for whole numbers: one a value where these are few, else ranges of one width; and each split's shares."""
    values = sorted({int(value) for found in counts.values() for value in found})
    few = len(values) <= MAX_COLUMNS
    step = 1 if few else max(1, int(nice_step((values[-1] - values[0] + 1) / MAX_COLUMNS)))
    first = 1 if values[0] == 1 else values[0] // step * step
    starts = values if few else list(range(first, values[-1] + 1, step))
    names = [count(start) if step == 1 else f"{count(start)}\u2013{count(start + step - 1)}" for start in starts]
    shares = {}
    for split, found in counts.items():
        columns = [0.0] * len(starts)
        for value, n in found.items():
            columns[starts.index(int(value)) if few else (int(value) - first) // step] += n
        shares[split] = [n / sum(found.values()) for n in columns]
    return names, shares

"""What the reports say in words: titles, verdicts, and the methods text with its references."""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bids_dl import decoding, derivatives, quality, query, written, zoo
from bids_dl.config import Decoding
from bids_dl.records import STEPS
from bids_dl.written import Json

TIMES = "\N{MULTIPLICATION SIGN}"
TITLES = {
    "t1w": "T1-weighted brain", "timeseries": "regional time series", "connectivity": "connectivity",
    "dual_regression": "network courses", "network_maps": "network maps", "dynamic_network_maps": "network maps in windows",
}  # fmt: skip


def brief(value: Any, digits: int = 3) -> str:
    """Write a number in a few digits, and anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        return "" if value is None else str(value)
    if not np.isfinite(value):
        return "n/a"
    return f"{value:,}" if isinstance(value, (int, np.integer)) else f"{round(float(value), 12):.{digits}g}"


def verdict_of_participant(features: Sequence[Json], problems: Sequence[Json], n_flagged: int = 0) -> tuple[str, str]:
    """Say in a sentence what was extracted from what, and how good that is: '', ``caution`` or ``bad``."""
    if not features:
        return "No feature could be extracted from this participant.", "bad"
    counts = Counter((title_of(f), _origin(f)) for f in features)
    parts = [f"{title}{f' {TIMES}{n}' if n > 1 else ''} ({origin})" for (title, origin), n in counts.items()]
    said = f"Extracted: {', '.join(parts)}."
    said += (
        f" {_count(n_flagged, 'measure')} of quality {'is' if n_flagged == 1 else 'are'} flagged." if n_flagged else ""
    )
    if problems:
        return f"{said} {_count(len(problems), 'scan')} could not be used:", "caution"
    return (said, "caution") if n_flagged else (f"{said} No problem was found.", "")


OUTLINED = {"mask": "brain mask", "gm": "grey matter", "wm": "white matter"}


def said_measure(name: str, value: float) -> tuple[str, str]:
    """Describe a measure of quality in words, and write its value with its unit."""
    said, unit = quality.MEASURES.get(name, (name, ""))
    if name == "moved_share":
        return said, f"{value:.0%}"
    shown = f"{value:,.0f}" if name == "n_volumes" or unit == "mL" else brief(value)
    return said, shown if unit == "1" else f"{shown} {unit}"


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def title_of(entry: Json) -> str:
    """Name a feature as a person would."""
    title = TITLES.get(entry["feature"], str(entry["feature"]).replace("_", " "))
    if sensed := of_sensors(Path(entry.get("path", ""))):
        return sensed if entry["feature"] == "timeseries" else f"{title} of {sensed}"
    return title


def of_sensors(path: Path) -> str:
    """Name what a file says of an EEG or MEG: EEG alpha amplitudes, or EEG time series of a derivative; else empty."""
    labels = query.entities(path)
    device, atlas = labels["datatype"], labels.get("atlas", "")
    if device not in query.SENSORS:
        return ""
    band = atlas.removeprefix(device)
    return (
        f"{device.upper()} {band[:1].lower() + band[1:]} amplitudes"
        if band != atlas
        else f"{device.upper()} time series"
    )


def _origin(entry: Json) -> str:
    """Say how near to the raw data the source of a feature lies."""
    if _is_derived(entry):
        return "computed here from the time series"
    if str(entry.get("why", "")).startswith("from the feature "):
        return f"computed here {entry['why']}"
    return "from a derivative" if entry.get("prepared") else "prepared here from a raw scan"


def _is_derived(entry: Json) -> bool:
    """Tell whether a connectome, or one in windows, was computed from a series, wherever the output lies today."""
    follows = entry.get("feature") in zoo.declaring("features", "FOLLOWS")
    return follows and str(entry.get("source", "")).endswith("_timeseries.tsv")


METRICS = {
    "auc": "AUC", "balanced_accuracy": "Balanced accuracy", "accuracy": "Accuracy", "f1": "F1", "brier": "Brier score",
    "rho": "Spearman's rho", "weighted_kappa": "Quadratic weighted kappa",
    "r2": "R²", "r": "Correlation r", "mae": "Mean absolute error", "rmse": "Root mean square error",
}  # fmt: skip
LOWER_IS_BETTER = {"brier", "mae", "rmse"}
NOT_BETTER, NOT_CLEARLY = "is not better", "is better, but not beyond its interval"
COVERS_CHANCE = "The interval covers chance: these data do not show that this target can be predicted."
BELOW_CHANCE = "It is below chance: look for few participants or unlike folds before any meaning."


def plain_reason(participant_id: str, reason: str) -> str:
    """Drop the name from a reason, so that equal reasons can be counted."""
    return re.sub(rf"^{re.escape(str(participant_id))}[\w-]*:?\s*", "", str(reason))


def said_splits(given: Json) -> str:
    """Describe the splits in a sentence of the past tense; empty if nothing is known."""
    if not given:
        return ""
    kinds = {"kfold": f"{given.get('n_folds')}-fold cross-validation", "file": "splits given in a file"}
    said = kinds.get(given.get("kind", ""), f"{given.get('kind')} cross-validation")
    said += (
        f", repeated {given['n_repeats']} times"
        if given.get("kind") == "kfold" and given.get("n_repeats", 1) > 1
        else ""
    )
    said += f" ({given['n_splits']} splits)" if given.get("n_splits") else ""
    said += f"; {kept}" if (kept := _said_groups(given.get("groups"))) else ""
    return f"Models were tested by {said}. No test participant was used to train a model or to stop its training."


def _said_groups(groups: str | None) -> str:
    """Say what a split keeps on one side; empty if nothing."""
    if groups == decoding.TIES:
        return "all volumes of a participant, and of participants of one family where a column tells of it, were kept in one part"
    return f"participants with the same {groups} were kept in one part" if groups else ""


def said_target(target: Json) -> str:
    """Describe a target: how many have each level, or the range of the quantity, and why it was chosen."""
    counts = target.get("counts", {})
    if target["kind"] != "regression":
        said = ", ".join(f"{level} {n:,}" for level, n in counts.items())
        said = f"levels from low to high: {said}" if target["kind"] == "ordinal" else said
        said += f"; positive class: {target['positive']}" if target.get("positive") is not None else ""
    else:
        said = "mean {mean:.3g}, SD {sd:.3g}, range {min:.3g} to {max:.3g}".format(
            **{"mean": 0, "sd": 0, "min": 0, "max": 0, **counts}
        )
    rows = f"{target.get('n', '?')} {target.get('rows', 'participants')}"
    kind = "Regression on the ordered levels" if target["kind"] == "ordinal" else target["kind"].capitalize()
    return f"{kind} of {rows}: {said}. {_sentence(target.get('why'))}"


def _sentence(text: str | None) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}." if text else ""


def role_of(models: Mapping[str, Json], model: str) -> str:
    """Tell whether a model is a network, a fusion or a baseline."""
    return str(models.get(model, {}).get("role", "network"))


def best_model(scores: Any, models: Mapping[str, Json], main: str) -> str:
    """Name the best network or fusion by the main metric, or the best baseline where there is none."""
    if scores.empty:
        return ""
    networks = scores[[role_of(models, m) != "baseline" for m in scores["model"]]]
    ranked = (scores if networks.empty else networks).sort_values("value", ascending=main in LOWER_IS_BETTER)
    return str(ranked["model"].iloc[0])


def verdict_of_target(scores: Any, models: Mapping[str, Json], main: str, best: str) -> tuple[list[str], str]:
    """Say in plain words how well it went, and what speaks against it; ``caution`` where something does."""
    if scores.empty:
        return [], ""
    row = scores[scores["model"] == best].iloc[0]
    sign = -1 if main in LOWER_IS_BETTER else 1
    low, high = sorted((sign * row["ci_low"], sign * row["ci_high"]))
    said = [
        f"Best: {best}, {as_in_papers(row, main)} in {row['n']:.0f} held-out participants; chance is {short(row['chance'])}."
    ]
    against = []
    if not low > sign * row["chance"]:
        against.append(COVERS_CHANCE if high >= sign * row["chance"] else BELOW_CHANCE)
    for kind, name in (("confounds_only", "The confounds alone reach"), ("linear", "A linear model reaches")):
        if rival := rival_model(scores, models, main, best, kind):
            value = sign * float(scores.loc[scores["model"] == rival, "value"].iloc[0])
            doubt = f": {best} {NOT_BETTER if value >= sign * row['value'] else NOT_CLEARLY}" if value >= low else ""
            (against if doubt else said).append(f"{name} {short(sign * value)} ({rival}){doubt}.")
    n_tried = sum(role_of(models, m) != "baseline" for m in scores["model"])
    if n_tried > 1 and role_of(models, best) != "baseline":
        said.append(
            f"It is the best of {n_tried} compared on the same test participants; expect slightly less on new ones."
        )
    return said[:1] + against + said[1:], "caution" if against else ""


def verdict_of_test(
    scores: Any, models: Mapping[str, Json], main: str, best: str, choices: Json, target: Json
) -> tuple[list[str], str]:
    """Say how the model that cross-validation found best did on another dataset; ``caution`` where that shows nothing."""
    mine = scores[scores["model"] == best]
    name = choices.get("test", {}).get("dataset", "the test dataset")
    first = (
        f"Trained on all {target.get('n', '?')} participants of '{choices.get('dataset', '?')}', judged once on participants of "
        f"'{name}', from whom nothing was learned."
    )
    if mine.empty:
        return [first, f"{best}, the best in cross-validation, could predict nobody there."], "caution"
    row = mine.iloc[0]
    said = [
        first,
        f"{best}, the best in cross-validation: {as_in_papers(row, main)} in {row['n']:.0f}; chance is {short(row['chance'])}.",
    ]
    sign = -1 if main in LOWER_IS_BETTER else 1
    for kind, who in (("confounds_only", "The confounds alone reach"), ("linear", "A linear model reaches")):
        if rival := rival_model(scores, models, main, best, kind):
            said.append(f"{who} {short(float(scores.loc[scores['model'] == rival, 'value'].iloc[0]))} ({rival}).")
    low = min(sign * row["ci_low"], sign * row["ci_high"])
    return (said, "") if low > sign * row["chance"] else ([*said, COVERS_CHANCE], "caution")


def said_resemblance(table: Any) -> list[str]:
    """Say in plain words, a sentence a feature, whether synthetic participants are told from real ones."""
    everyone = table[table["level"] == "all"]
    said = []
    for feature, rows in everyone.groupby("feature", sort=False):
        known = rows[rows["auc"].notna()]
        drawn, real = (known[known["rows"] == name] for name in ("synthetic", "train"))
        if drawn.empty:
            said.append(f"{feature}: too few participants in the validation parts to say; it takes six.")
            continue
        beyond, n = int((drawn["auc"] > drawn["chance_high"]).sum()), len(drawn)
        said.append(
            f"{feature}: synthetic participants are told from real ones with an AUC of {short(drawn['auc'].mean())} on average, "
            f"beyond chance in {beyond} of {n} splits; real training participants with {short(real['auc'].mean())}. "
            f"{_said_nearness(float(drawn['nearness'].mean()))}"
        )
    return said


def _said_nearness(ratio: float) -> str:
    """Say whether synthetic participants are copies."""
    if not np.isfinite(ratio):
        return ""
    found = f"They lie {short(ratio)} times as far from the nearest training participant as unseen people do"
    return f"{found}: some nearly are copies." if ratio < 0.5 else f"{found}: they are no copies."


def rival_model(scores: Any, models: Mapping[str, Json], main: str, best: str, kind: str) -> str:
    """Name the best baseline of one kind."""
    mine = [models.get(m, {}).get("model") == kind and m != best for m in scores.get("model", ())]
    return best_model(scores[mine], models, main) if any(mine) else ""


def short(value: float) -> str:
    """Write a score in two decimals; large numbers in four digits."""
    if value is None or not np.isfinite(value):
        return "n/a"
    return f"{value:.4g}" if abs(value) >= 100 or value == 0 else f"{value:.2f}".replace("-0.00", "0.00")


def as_in_papers(row: Any, main: str) -> str:
    """Write a score as papers do: AUC 0.74 [0.70, 0.78], p = 0.0005."""
    known = [
        (c, said)
        for c, said in (("p_value_retrained", "retrained "), ("p_value", ""))
        if (found := row.get(c)) is not None and found == found
    ]
    p = f", {known[0][1]}p = {row[known[0][0]]:.2g}" if known else ""
    return f"{METRICS.get(main, main)} {with_interval(row['value'], row['ci_low'], row['ci_high'])}{p}"


def with_interval(value: float, low: float, high: float) -> str:
    """Write a score with its interval in brackets."""
    return f"{short(value)} [{short(low)}, {short(high)}]"


def ordered_models(scores: Any, models: Mapping[str, Json], main: str) -> Any:
    """Sort models: baselines last, each group from good to bad."""
    baseline = [role_of(models, m) == "baseline" for m in scores["model"]]
    value = scores["value"] * (-1 if main in LOWER_IS_BETTER else 1)
    return scores.iloc[np.lexsort((-value, baseline))]


def spoken(method: str) -> str:
    """Write the name of an explainer as words: labels of BIDS cannot hold a space."""
    words = method.replace("_", " ")
    return re.sub(r"^(integrated|layerwise)(?=[a-z])", r"\1 ", words)


class Reference(NamedTuple):
    """A paper that a method is known by; files of methods give no title."""

    authors: str
    year: str
    title: str
    venue: str
    link: str

    @property
    def key(self) -> str:
        """Name of the BibTeX entry."""
        first = unicodedata.normalize("NFKD", re.split(",| and ", self.authors)[0]).encode("ascii", "ignore").decode()
        return f"{re.sub('[^A-Za-z]', '', first)}{self.year}"

    @property
    def cited(self) -> str:
        """How the text cites it: Ojala and Garriga, 2010."""
        families = [a.split(",")[0] for a in self.authors.split(" and ")]
        few = len(families) < 3 and families[-1] != "others"
        return f"{' and '.join(families) if few else f'{families[0]} et al.'}, {self.year}"

    @property
    def url(self) -> str:
        """Where the paper is found; empty where that is not known."""
        return re.sub("^arxiv:", "https://arxiv.org/abs/", re.sub("^doi:", "https://doi.org/", self.link), flags=re.I)

    def plain(self) -> str:
        """Write it as a line of a list, without where it is found."""
        who = self.authors.replace(" and others", " et al.").replace(" and ", "; ")
        return " ".join([f"{who} ({self.year}).", *(f"{part}." for part in (self.title, self.venue) if part)])

    def bibtex(self) -> str:
        """Write it as a BibTeX entry."""
        kind, identifier = (
            ("doi", self.link.removeprefix("doi:")) if self.link.startswith("doi:") else ("note", self.link)
        )
        fields = {
            "author": self.authors,
            "title": f"{{{self.title}}}" if self.title else "",
            "journal": self.venue,
            "year": self.year,
            kind: identifier,
        }
        said = {k: v.replace("&", r"\&") for k, v in fields.items() if v}
        return "\n".join([f"@article{{{self.key},", *(f"  {k} = {{{v}}}," for k, v in said.items()), "}"])


CITED = re.compile(r" ?\[@([\w;@.-]+)\]")
"""``[@bids]`` in a paragraph cites the reference of that trigger, ``[@models.gcn]`` those that the summary of a zoo's method
marks; a trigger without one cites nothing."""

IN_FILE = re.compile(r"(?P<authors>.+?) \((?P<year>\d{4})\), (?P<venue>.+?)\.(?: (?P<link>\S+))?$")
"""How a method's file names a paper: Kipf and Welling (2017), ICLR. arXiv:1609.02907."""


@lru_cache(maxsize=1)
def references() -> dict[str, Reference]:
    """Read the table of references, keyed by what brings each in."""
    lines = (written.TEMPLATES / "references.tsv").read_text(encoding="utf-8").splitlines()[1:]
    return {trigger: Reference(*fields) for trigger, *fields in (line.split("\t") for line in lines)}


def of_method(folder: str, method: str) -> list[Reference]:
    """Read what the summary of a method cites from its file; a paper of the table is taken from there, with its title."""
    if method not in zoo.names(folder):
        return []
    titled = {r.link: r for r in references().values() if r.link}
    found = [match for line in zoo.references(folder, method).values() if (match := IN_FILE.match(line))]
    return [
        titled.get(m["link"]) or Reference(_bibtex_names(m["authors"]), m["year"], "", m["venue"], m["link"] or "")
        for m in found
    ]


def _bibtex_names(authors: str) -> str:
    """Join family names as BibTeX does: Mescheder and Geiger and Nowozin."""
    return authors.replace(" et al.", " and others").replace(", ", " and ")


def _known(match: re.Match[str]) -> list[Reference]:
    """List what a citation refers to, once each."""
    triggers = [trigger.partition(".") for trigger in match[1].replace("@", "").split(";")]
    found = [
        of_method(name, method) if dot else [r for r in [references().get(name)] if r] for name, dot, method in triggers
    ]
    return list(dict.fromkeys(reference for some in found for reference in some))


def _lettered(paragraphs: Sequence[str]) -> dict[Reference, Reference]:
    """Find what the paragraphs cite, by author; papers of the same first author and year get letters: 2010a, 2010b."""
    found = {r for p in paragraphs for m in CITED.finditer(p) for r in _known(m)}
    ordered = sorted(found, key=lambda r: (r.authors.lower(), r.year, r.venue))
    alike = {key: [r for r in ordered if r.key == key] for key in {r.key for r in ordered}}
    return {
        r: r._replace(year=r.year + chr(ord("a") + alike[r.key].index(r))) if len(alike[r.key]) > 1 else r
        for r in ordered
    }


def cited_in(paragraphs: Sequence[str]) -> list[Reference]:
    """List what the paragraphs cite, by author, once each."""
    return list(_lettered(paragraphs).values())


def with_citations(paragraphs: Sequence[str], show: Callable[[Reference], str], frame: str, within: str) -> list[str]:
    """Put each citation in a frame such as ``({})``, and ``within`` parentheses in another; those that cite nothing vanish."""
    named = _lettered(paragraphs)

    def cite(match: re.Match[str]) -> str:
        before = match.string[: match.start()]
        known = "; ".join(show(named[r]) for r in _known(match))
        return (within if before.count("(") > before.count(")") else frame).format(known) if known else ""

    return [CITED.sub(cite, p) for p in paragraphs]


def readable(paragraphs: Sequence[str]) -> list[str]:
    """Put authors and years into paragraphs, for a page."""
    return with_citations(paragraphs, lambda reference: reference.cited, " ({})", " [{}]")


def methods(out: Path, level: str) -> list[str]:
    """Write the text, a paragraph a step that left something behind."""
    choices = written.read_choices(out) if level == "group" else {}
    settings = tomllib.loads(written.read_text(out / "logs" / f"bids_dl_{level}.toml"))
    said = [
        _said_data(out), _said_features(out), _said_quality(settings) if level == "group" else "",
        _said_targets(choices, settings), _said_models(out, choices, settings),
        *([_said_scores(out, settings), _said_explanations(out, choices, settings)] if level == "group" else []),
    ]  # fmt: skip
    return [paragraph for paragraph in said if paragraph]


def _said_data(out: Path) -> str:
    version = written.about(out, out)["version"]
    return (
        f"Data in the Brain Imaging Data Structure [@bids] were processed with bids_dl {version}, a BIDS App [@bidsapps], "
        "which found its inputs with PyBIDS [@pybids] and ran as a Nipype graph [@nipype]."
    )


KEPT = "the weights with the lowest loss in validation participants were kept"
WITH_CAPTUM = {"integrated_gradients"}
SUBJECTS = {
    "timeseries": "Regional time series", "connectivity": "Connectivity matrices",
    "dynamic_connectivity": "Connectivity matrices in sliding windows", "t1w": "T1-weighted volumes",
    "dual_regression": "Courses", "network_maps": "Individual maps",
    "dynamic_network_maps": "Individual maps in sliding windows", "events": "Trial types under way at each volume",
}  # fmt: skip


def _said_features(out: Path) -> str:
    """Tell which features were extracted, a sentence a kind of file, from the participants' records."""
    records = [written.read_json(p) for p in sorted((out / "logs" / "participants").glob("*.json"))]
    kinds: dict[tuple[str, ...], list[Json]] = {}
    for record in records:
        for entry in record.get("features", []):
            labels = query.entities(Path(entry["path"]))
            kind = (entry["feature"], *(labels.get(k, "") for k in ("task", "space", "atlas", "stat", "desc")))
            kinds.setdefault(kind, []).append(entry | {"who": record.get("participant_id")})
    said = [_said_feature(out, mine) for mine in kinds.values()]
    failed = sum(bool(r.get("problems")) for r in records)
    return " ".join(
        [*said, *([f"At least one scan of {_count(failed, 'participant')} could not be used."] if failed else [])]
    )


def _said_feature(out: Path, entries: Sequence[Json]) -> str:
    first = entries[0]
    path = out / first["path"]
    labels, sidecar = query.entities(path), written.read_json(derivatives.sidecar_path(path))
    where = _said_where(first, labels)
    where += f" in {labels['space']} space" if labels.get("space") else ""
    how = "; ".join(str(sidecar[k]) for k in ("RelationshipMeasure", "Description") if sidecar.get(k))
    how = f"; {how}".replace("Fisher z", "Fisher z [@fisherz]") if how else ""
    how += " [@nilearn]" if "_bold." in str(first.get("source")) and first["feature"] != "events" else ""
    motion = [e["mean_fd"] for e in entries if e.get("mean_fd") is not None]
    moved = f" Mean framewise displacement [@displacement] was {np.mean(motion):.2f} mm." if motion else ""
    n = _count(len({e["who"] for e in entries}), "participant")
    subject = SUBJECTS.get(first["feature"], f"Features '{first['feature']}'")
    if (sensed := of_sensors(path)) and first["feature"] == "timeseries":
        subject = f"{sensed} at each sensor"
    return f"{subject}{where} ({n}{how}) were {_said_origin(entries)}.{moved}"


def _said_where(entry: Json, labels: Mapping[str, str]) -> str:
    """Say what a feature was measured of: an atlas's regions, a template's networks, or a rhythm: sensors have no atlas."""
    if sensed := of_sensors(Path(entry["path"])):
        return "" if entry["feature"] == "timeseries" else f" of {sensed}"
    atlas = labels.get("atlas")
    if not atlas:
        return ""
    family = re.match(r"[a-z]*", atlas.lower())
    cited = f"[@atlas-{family[0] if family else ''}]"
    if entry["feature"] in zoo.declaring("features", "OF_NETWORKS") or "dual_regression" in str(entry.get("why")):
        return f" of the networks {atlas} {cited}"
    return f" in the regions of the {atlas} atlas {cited}"


def _said_origin(entries: Sequence[Json]) -> str:
    first = entries[0]
    sensed = of_sensors(Path(first["path"]))
    if _is_derived(first):
        follows = "courses of the networks" if "dual_regression" in str(first.get("why")) else "regional time series"
        return f"computed from the {'series of the sensors' if sensed else follows}"
    if str(first.get("why", "")).startswith("from the feature "):
        return f"computed {first['why']}"
    if first["feature"] == decoding.EVENTS:
        return "read from the tables of events"
    if first["feature"] in zoo.declaring("features", "OF_NETWORKS"):
        return f"found by dual regression [@dualregression] in scans {_said_preparation(entries)}"
    with_mne = sensed and not all(e.get("prepared") for e in entries)
    return _said_preparation(entries) + (", read with MNE-Python [@mne] and MNE-BIDS [@mnebids]" if with_mne else "")


def _said_preparation(entries: Sequence[Json]) -> str:
    raw = sum(not e.get("prepared") for e in entries)
    if 0 < raw < len(entries):
        return f"prepared by bids_dl from {raw} raw scans and taken from derivatives for the other {len(entries) - raw}"
    return "prepared by bids_dl from raw scans" if raw else "taken from derivatives"


def _said_quality(settings: Json) -> str:
    """Tell by which rules participants were left out for their scans' quality."""
    given = settings.get("quality", {})
    rules = [
        (given.get("max_mean_fd_mm"), "their mean framewise displacement [@displacement] exceeded {:g} mm"),
        (given.get("min_mask_dice"), "a brain mask overlapped the template's by a Dice coefficient below {:g}"),
        (
            given.get("exclude_flagged"),
            f"a measure of quality lay more than {quality.LARGEST_Z} robust standard deviations from the median of the "
            f"participants of their site (of all, where it had fewer than {quality.FLAGGED_FROM}) or filter, confounds and "
            f"censoring left fewer than {quality.FEWEST_FREE} degrees of freedom",
        ),
    ]
    said = [text.format(limit) for limit, text in rules if limit]
    return f"Participants were left out where {', or '.join(said)}." if said else ""


def said_flags(scans: Any) -> str:
    """Count what was measured and what was flagged, from the table of quality."""
    flagged = scans[scans["flags"].notna()]
    n_scans, n_people = len(scans), scans["participant_id"].nunique()
    said = f"{_count(n_scans, 'scan')} of {_count(n_people, 'participant')} were measured; "
    n_flagged = flagged["participant_id"].nunique()
    return said + (
        f"{_count(len(flagged), 'scan')} of {_count(n_flagged, 'participant')} {'is' if len(flagged) == 1 else 'are'} flagged."
        if n_flagged
        else "none is flagged."
    )


def said_rules(settings: Json, reasons: Mapping[str, str]) -> list[str]:
    """Tell for each rule of quality that was set how many it left out; ``reasons`` are those of everyone left out."""
    given = {name: value for name, value in settings.get("quality", {}).items() if value}
    if not given:
        return [
            "No rule of quality was set: flags are for the reader, and nobody was left out for the quality of a scan."
        ]
    said = []
    for name, value in given.items():
        n = sum(f"(quality.{name}" in reason for reason in reasons.values())
        shown = "true" if value is True else f"{value:g}"
        said.append(f"quality.{name} = {shown} left out {_count(n, 'participant') if n else 'nobody'}.")
    return said


def _said_targets(choices: Json, settings: Json) -> str:
    said = []
    for target in choices.get("targets", []):
        counts, n = target.get("counts", {}), target.get("n", "?")
        levels = ", ".join(f"{k} {level}" for level, k in counts.items())
        if target["kind"] == "ordinal":
            said.append(
                f"'{target['name']}' was predicted by regression on its ordered levels in {n} participants ({levels})."
            )
        elif target["kind"] == "classification":
            said.append(f"'{target['name']}' was classified in {n} {target.get('rows', 'participants')} ({levels}).")
        else:
            spread = f"mean {counts.get('mean', 0):.3g}, SD {counts.get('sd', 0):.3g}"
            said.append(f"'{target['name']}' was predicted by regression in {n} participants ({spread}).")
    said += [_said_decoding(settings)] if said and settings.get("targets", {}).get("names") == [decoding.EVENTS] else []
    freed = _freed(choices) if said else ""
    if settings.get("normalization", {}).get("remove_confounds") and freed:
        confounds = ", ".join(choices.get("covariates", []))
        said.append(
            f"Confounds ({confounds}) were regressed out of {freed}, with weights learned from training participants."
        )
    if (name := choices.get("harmonizer", "none")) != "none" and freed:
        site = choices.get("splits", {}).get("site")
        said.append(
            f"Differences between sites ('{site}') were removed from {freed} by the harmonizer '{name}' [@harmonizers.{name}], "
            "learned from training participants."
        )
    return " ".join([*said, said_splits(choices.get("splits", {}))]).strip()


def _said_decoding(settings: Json) -> str:
    """Tell what a prediction of a moment sees, when an event counts, and which moments were left out."""
    given = Decoding(**{k: v for k, v in settings.get("decoding", {}).items() if k in Decoding.__dataclass_fields__})
    n = _count(given.context, "volume")
    said = f"Each volume was predicted from {n} {'that ended with it' if given.causal else 'around it'}; "
    said += f"an event counted {given.delay_s:g} s late, for the haemodynamic response. "
    said += (
        f"Series were standardised by the volumes up to each one, of which the first {given.baseline_s:g} s were not predicted. "
        if given.causal
        else "Series were standardised over the whole run. "
    )
    said += f"One volume in {given.stride} was taken. " if given.stride > 1 else ""
    left = "more than one condition" if given.rest else "none or more than one condition"
    named = f"Volumes without any condition were the class '{given.rest}'; " if given.rest else ""
    return f"{said}{named}{'those' if named else 'Volumes'} with {left} were left out, as were censored ones."


def _freed(choices: Json) -> str:
    """Name the features that confounds and sites are taken out of: those without a time axis; nothing where there are none."""
    given = choices.get("features", [])
    whole = [one["name"] for one in given if not {*STEPS} & set(one.get("dims", ()))]
    return "the features" if len(whole) == len(given) else ", ".join(whole)


VARIED = (
    "Training volumes, and no others, were rotated, scaled, shifted, bent, made brighter here and there and noisier at random, anew at "
    "each step."
)
CORAL = "Ordered levels were told apart by consistent rank logits [@coral], but for models that learn from unlabelled participants"


def _said_models(out: Path, choices: Json, settings: Json) -> str:
    """Tell which models were trained, and how long, from what they left behind."""
    named: dict[str, list[str]] = {"network": [], "solved": [], "baseline": []}
    for model in choices.get("models", []):
        folder = "fusions" if model.get("role") == "fusion" else "models"
        cited = f"[@{folder}.{model.get('model')}]"
        named[_kind_of(model)].append(f"{model['id']} ({model.get('summary', '').rstrip('.')} {cited})")
    said = []
    if named["network"]:
        said.append(
            f"Neural networks [@review] were trained with PyTorch [@pytorch] and MONAI [@monai]: {'; '.join(named['network'])}."
        )
        tables = _tables(out, "histories/*.tsv")
        epochs = [int(t["epoch"].max()) + 1 for t in tables if t["train_loss"].notna().any()]
        said += [f"Training with AdamW [@adamw] took at most {max(epochs)} epochs; {KEPT}."] if epochs else []
        if any(m.get("role") == "fusion" for m in choices.get("models", [])):
            said.append("A fusion joined, in each split, the network of each feature that had the lowest such loss.")
        halved = any((t["bits"] == 16).any() for t in tables if "bits" in t)
        said += ["They were computed in bfloat16, with weights in float32."] if halved else []
        said += [f"{CORAL}."] if epochs and any(t["kind"] == "ordinal" for t in choices.get("targets", [])) else []
    given = settings.get("training", {})
    said += _said_beginning(given) if named["network"] else []
    whole = [one for one in choices.get("features", []) if one.get("dims") == ["x", "y", "z"]]
    said += [VARIED] if named["network"] and whole and given.get("augment") == "on" else []
    if given.get("synthetic", "none") != "none":
        cited = f"a generative model ('{given['synthetic']}' [@models.{given['synthetic']}])"
        said.append(
            f"To the training rows of networks of connectomes and columns, and to no others, {given.get('n_synthetic', 1):g} synthetic "
            f"participants for each real one were added, drawn by {cited} that had seen these training rows alone; "
            "a classifier two-sample test [@twosample] compared them with real validation participants."
        )
    if named["solved"]:
        said.append(
            f"Models that are no neural networks, but solved for, were fitted on the same splits: {'; '.join(named['solved'])}."
        )
    if named["baseline"]:
        said.append(
            f"Baselines were fitted with scikit-learn [@scikit-learn] on the same splits: {'; '.join(named['baseline'])}."
        )
    return " ".join(said)


def _said_beginning(given: Json) -> list[str]:
    """Tell what networks had learned before they learned the target."""
    said = []
    if start := given.get("start_from"):
        kept = f"; of these, {', '.join(given['frozen'])} stayed as they were" if given.get("frozen") else ""
        said.append(
            f"Networks of the same kind began with the weights of the model '{Path(start).name}', trained on other participants{kept}."
        )
    if given.get("pretrain", "none") == "masked":
        said.append(
            f"{'Other networks' if said else 'Networks'} of connectomes, columns and sequences first learned to reconstruct hidden values "
            "[@masked] of their training participants and of participants without the target, none of whom was tested."
        )
    return said


def _kind_of(model: Json) -> str:
    """Tell baselines, networks that are trained epoch by epoch, fusions of such among them, and what is solved for."""
    if model.get("role") == "baseline":
        return "baseline"
    method = model.get("model")
    return "solved" if method in zoo.names("models") and not zoo.has_epochs(method) else "network"


def _said_scores(out: Path, settings: Json) -> str:
    """Tell which scores, intervals and tests were computed, from the tables of metrics."""
    if not (tables := _tables(out, "metrics/*_metrics.tsv")):
        return ""
    names = [METRICS.get(m, m) for m in dict.fromkeys(m for t in tables for m in t["metric"])]
    names = [n if n in {"AUC", "F1", "R²", "Brier score", "Spearman's rho"} else n[0].lower() + n[1:] for n in names]
    columns = ("ci_low", "folds_low", "p_value", "p_value_retrained")
    has = {c: any(c in t and t[c].notna().any() for t in tables) for c in columns}
    given = settings.get("metrics", {})
    said = f"Held-out predictions were scored by {', '.join(names)}"
    decodes = settings.get("targets", {}).get("names") == [decoding.EVENTS]
    drawn = "participants" if decodes else _drawn_together(out)
    n_drawn, n_permuted = (given.get(key, "many") for key in ("n_bootstraps", "n_permutations"))
    said += f", with 95 % intervals from {n_drawn} bootstrap samples of {drawn} [@bootstrap]" if has["ci_low"] else ""
    over_folds = " and intervals of the folds' mean, corrected for overlapping training sets [@corrected]"
    said += over_folds if has["folds_low"] else ""
    null = "circular shifts of each run's conditions" if decodes else "permutations of the labels [@permutation]"
    said += f", and compared with {n_permuted} {null}" if has["p_value"] else ""
    said += "; for some models the permutation test repeated the training as well" if has["p_value_retrained"] else ""
    return f"{said}.{_said_calibration(out, given)}{_said_comparisons(out)}{_said_test(out)}"


def _drawn_together(out: Path) -> str:
    """Say what a bootstrap draws: relatives together, where a column tells of them."""
    tied = written.read_choices(out).get("splits", {}).get("groups")
    return f"participants, those of one '{tied}' together," if tied else "participants"


def _said_calibration(out: Path, given: Json) -> str:
    """Tell how outputs were calibrated, and what sets and intervals promise."""
    if not (found := _tables(out, "metrics/*_calibration.tsv")):
        return ""
    measured = {m for table in found for m in table["metric"]}
    said = ["probabilities by a temperature [@temperature]"] if "ece" in measured else []
    said += ["quantities by a slope and an offset"] if "mae" in measured else []
    promised = f"{100 * given.get('coverage', found[0]['promised'].iloc[0]):g} %"
    return (
        f" The calibration ({' and '.join(said)}) and sets or intervals that hold the truth in {promised} of the cases (split conformal "
        "prediction [@conformal]) were learned from training rows that a model was not fitted on."
    )


def _said_comparisons(out: Path) -> str:
    if not any(t["p_value"].notna().any() for t in _tables(out, "metrics/*_comparisons.tsv")):
        return ""
    return (
        " Models were compared on the same folds by the corrected resampled t-test [@corrected], "
        "its p-values adjusted for all comparisons of a target by Holm's method [@holm]."
    )


def _tables(out: Path, pattern: str) -> list[Any]:
    """Read the tables of the group level that a pattern names; empty ones are left out."""
    found = [written.read_table(p) for p in sorted((out / "group").glob(pattern))]
    return [table for table in found if not table.empty]


def _said_test(out: Path) -> str:
    """Tell that the models were judged on another dataset, where they were."""
    test = written.read_choices(out).get("test")
    if not test or not list((out / "group" / "metrics").glob("*_test.tsv")):
        return ""
    return (
        f" Models trained on all participants were then judged once on the dataset '{test['dataset']}' "
        f"({_count(test['n_participants'], 'participant')}), whose participants took no part in training or in the choice of models."
    )


def _said_explanations(out: Path, choices: Json, settings: Json) -> str:
    methods = sorted({said["method"] for _, said in written.explanations(out)})
    if not methods:
        return ""
    given, named = settings.get("explainers", {}), []
    files = {name.replace("_", ""): name for name in zoo.names("explainers")}
    for method in (one for one in methods if one != "attention"):
        name = files.get(re.sub("[^a-z]", "", method.lower()))
        most = (zoo.options("explainers", name) | given.get(name, {}))["max_participants"] if name else 0
        few = f" (at most {most} participants a split, evenly spread)" if most else ""
        cited = f"[@explainers.{name}{';@captum' if name in WITH_CAPTUM else ''}]"
        named.append(f"{spoken(method)} {cited}{few}")
    several = any(len(t.get("levels", ())) > 2 and t["kind"] == "classification" for t in choices.get("targets", []))
    said = (
        "; of several classes the predicted one was explained, and slopes tell the direction of each" if several else ""
    )
    told = (
        [f"Predictions of held-out participants were attributed to the input by {' and by '.join(named)}{said}."]
        if named
        else []
    )
    if "attention" in methods:
        told.append("The weights of networks that attend [@explainers.attention] were read for them as well.")
    return " ".join(told)

"""report.html: self-contained, complete, safe against odd names, and honest about what is undefined."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from cxr_jax.evals import figures
from cxr_jax.evals.classification import evaluate
from cxr_jax.evals.measures import Options, difference, measure
from cxr_jax.evals.protocols import Scores
from cxr_jax.evals.report import Column, write_report
from cxr_jax.evals.training_curves import read_metrics, training_panels

NAMES = ["Effusion", "Mass <5 mm & 'odd'", "Hernia", "Rare"]
VOID = {"meta", "img", "br", "link", "input", "hr"}


COUNTS = dict.fromkeys(("images", "patients", "positives", "negatives", "unknown", "positive_patients"), 30)
RATES = {name: value for metric in ("auroc", "sensitivity", "specificity") for name, value in (
    (metric, 0.77), (f"{metric}_interval", [0.6, 0.9]))}  # fmt: skip
PEOPLE = [{"group": g, "counts": COUNTS, "sparse": g == "M", "undefined": None, **RATES} for g in ("F <odd>", "M")]
GAP = {"value": 0.11, "interval": [0.02, 0.3], "highest": "F <odd>", "lowest": "M", "difference_interval": [-0.1, 0.3]}
GROUPS = {"sex": {name: {"groups": PEOPLE, "gap": GAP | {"undefined": None}} for name in NAMES}}
ONE = {"auroc": 0.92, "auroc_interval": [0.88, 0.95], "undefined": None, "warning": True}
MODEL = {"model_auroc": 0.9, "model_auroc_interval": None, "model_auroc_within_strata": 0.6}
AUDITS = {
    "warnings": ["File size alone predicts <Effusion>."],
    "settings": {"warn_auroc": 0.7, "neighbours": 20},
    "shortcuts": {"file size": {"Effusion": ONE | MODEL | {"model_auroc_within_strata_interval": None}}, "sex": {}},
    "source": {"undefined": "all training rows are of one source, phantom"},
    "duplicates": {
        "correlation": 0.98, "count": 1, "test_images": 1, "of": 120,
        "nearest": {"median": 0.8, "p99": 0.9, "highest": 0.99},
        "pairs": [{"correlation": 0.99, "split": "train", "image_id": "seen <1>", "patient_id": "p",
                   "test_image_id": "copy", "test_patient_id": "q"}],
    },
    "labels": {"Effusion": {"vote_auroc": 0.8, "contradicted": 1, "of": 120, "rows": [
        {"split": "test", "image_id": "wrong", "label": 1, "positive_neighbours": 0.05, "vote": 0.1}]}},
}  # fmt: skip
ROLE = {"split": "val", "where": {"view": "PA"}, "images": 50, "other_rows": 20, "no_label": 7, "kept": 23}
EXCLUDED = {
    "roles": {"test": ROLE | {"unknown": {"Effusion": 5, "Rare": 0}}},
    "skipped": {"damaged <JPEG>": 3},
    "skipped_count": 3,
}


class Page(HTMLParser):
    """Collects elements and checks that tags nest."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.words = [], [], []
        self.feed(text)
        assert not self.open, f"unclosed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def metrics_file(path, steps=6):
    rows = [
        {"step": s, "loss": 9.0 - s, "dino_loss": 5.0 - s / 2, "teacher_entropy": 8.0, "teacher_cls_rank": 10.0 + s}
        | {"prototype_use": 0.4, "learning_rate": 1e-4 * s, "grad_norm": None if s == 2 else 2.0, "images_per_sec": 30}
        | ({"collapse": ["images alike"]} if s >= 4 else {})
        for s in range(steps)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, size=(120, 4))
    labels[:, 2], labels[:, 3] = 0, -1
    labels[:10, 3] = np.arange(10) % 2
    good = labels + rng.normal(size=labels.shape) * 0.7
    chance = rng.normal(size=labels.shape)
    ids = np.arange(120) // 2
    options, both = Options(60, 0.95, 0, 0.9, 15), [Scores(values, {}, values, "logit") for values in (good, chance)]
    groups = {"head": NAMES[:2], "tail": NAMES[2:]}
    every = {"test": labels, "select": labels}
    results = [measure(scores, every, ids, NAMES, options, groups=groups) for scores in both]
    apart = difference(*both, labels, ids, NAMES, options)
    columns = [
        Column("GLoRI", good, results[0], None, "logit"),
        Column("Random network", chance, results[1], apart, "logit"),
    ]
    image = rng.integers(0, 256, size=(90, 120), dtype=np.uint8)
    path = write_report(
        folder / "report.html",
        title="Findings <test>",
        evaluated={"Run": "runs/a", "Network": "teacher", "Fingerprint": "abc123"},
        class_names=NAMES,
        labels=labels,
        columns=columns,
        attention=[{"image": image, "maps": {"Effusion": rng.random((4, 5))}, "caption": 'case "1"'}],
        metrics_path=metrics_file(folder / "metrics.jsonl"),
        environment={"jax": "0.10"},
        notes=["rows without a view were dropped"],
        subgroups=GROUPS,
        audits=AUDITS,
        excluded=EXCLUDED,
        settings={"long_tail": {"head_above": 9, "tail_below": 9}, "subgroups": {"min_positive_patients": 20}}
        | {"metrics": {"calibration_bins": 15}},
        extra=[("masks", "Lung masks", "<p>made elsewhere</p>")],
    )
    return path, columns


def test_page_is_well_formed_and_loads_nothing_from_outside(written):
    text = written[0].read_text()
    page = Page(text)
    assert not re.search(r"https?:|//[a-z]|@import|<script|<link", text)
    for tag, attributes in page.elements:
        for name in ("src", "href"):
            address = attributes.get(name, "#")
            assert address.startswith(("#", "data:image/")), (tag, address)
        if tag == "svg":
            assert attributes.get("aria-label") or attributes.get("aria-hidden")
        if tag == "img":
            assert attributes["alt"]


def test_ids_are_unique_and_every_reference_has_its_target(written):
    text = written[0].read_text()
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([^)"]+)', text)) <= set(ids)


def test_page_says_what_it_must(written):
    path, columns = written
    words = " ".join(Page(path.read_text()).words)
    results = columns[0].results
    assert "Findings <test>" in words and "Mass <5 mm & 'odd'" in words and 'case "1"' in words
    assert f"{results['auroc_macro']:.3f}" in words
    low, high = results["per_class"]["Effusion"]["auroc_interval"]
    assert f"[{low:.3f}, {high:.3f}]" in words
    assert "Hernia: no positive label" in words
    assert "Rare\xa0†" in words and "Effusion\xa0†" not in words
    assert "above" in words and "AUROC difference" in words
    assert "The run warned: images alike, from step 4 to the end of the run." in words
    assert "60 bootstrap" in words and "rows without a view were dropped" in words
    for heading in ("Training", "Where the head looks", "ROC and precision-recall curves", "Environment"):
        assert heading in words
    for panel in ("Loss terms", "Teacher entropy (nats)", "Feature rank", "Prototype use", "Learning rate"):
        assert panel in words


def test_page_shows_what_stands_beside_the_scores(written):
    path, columns = written
    words, entry = " ".join(Page(path.read_text()).words), columns[0].results["per_class"]["Effusion"]
    assert "File size alone predicts <Effusion>." in words and "Beware" in words
    assert f"{entry['thresholds']['f1']:.4g}" in words and f"{entry['f1']:.3f}" in words
    assert f"Brier {entry['brier']:.3f}" in words and "Share with the finding" in words
    assert "F <odd>" in words and "M\xa0†" in words and "not told apart; difference" in words
    assert "head Mass" not in words and "Effusion, Mass <5 mm & 'odd'" in words  # the head group's findings
    for text in ("seen <1>", "all training rows are of one source", "wrong", "by definition", "made elsewhere"):
        assert text in words, text
    assert "Test (val)" in words and "view PA" in words and "Effusion 5" in words and "3 × damaged <JPEG>" in words
    p = columns[1].difference["per_class"]["Effusion"]["delong"]["p"]
    assert p < 0.001 and "p < 0.001" in words


def test_colours_follow_the_page(written):
    text = written[0].read_text()
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r"#0001[0-9a-f]{2}", text)  # placeholders of figures.py
    assert "var(--series-1)" in text


def test_sections_without_content_are_left_out(written, tmp_path):
    column = written[1][0]
    labels = np.zeros(column.scores.shape, int)
    results = evaluate(column.scores, labels, np.arange(120), NAMES, resamples=5)
    path = write_report(
        tmp_path / "small.html",
        title="Nothing defined",
        evaluated={},
        class_names=NAMES,
        labels=labels,
        columns=[Column("probe", column.scores, results)],
    )
    words = " ".join(Page(path.read_text()).words)
    assert "Against the baselines" not in words and "Training" not in words and "nan" not in words.lower().split()
    assert words.count("no positive label") == 4


def test_report_refuses_columns_that_do_not_fit(written, tmp_path):
    column = written[1][0]
    common = {"title": "t", "evaluated": {}, "labels": np.zeros((120, 4), int)}
    with pytest.raises(ValueError, match="columns is empty"):
        write_report(tmp_path / "r.html", class_names=NAMES, columns=[], **common)
    with pytest.raises(ValueError, match=r"'GLoRI' has scores .* lacks \['Edema'\]"):
        write_report(tmp_path / "r.html", class_names=["Edema"], columns=[column], **common)


def test_metrics_of_a_running_or_broken_file(tmp_path):
    path = metrics_file(tmp_path / "metrics.jsonl")
    with path.open("a") as file:
        file.write('{"step": 6, "lo')
    found = read_metrics(path)
    np.testing.assert_array_equal(found["loss"][0], np.arange(6))
    np.testing.assert_array_equal(found["grad_norm"][0], [0, 1, 3, 4, 5])
    path.write_text('{"step": 0, "loss": 1}\nbroken\n{"step": 1, "loss": 1}\n')
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        read_metrics(path)
    with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl of a run directory"):
        read_metrics(tmp_path / "none.jsonl")
    path.write_text("")
    assert training_panels(path) == []


def pixels(address):
    import base64
    import io

    picture = Image.open(io.BytesIO(base64.b64decode(address.split(",", 1)[1])))
    return np.asarray(picture.convert("RGB")).astype(int)


def test_attention_overlay_tints_what_gets_more_than_its_share():
    image = np.full((64, 64), 120, np.uint8)
    weights = np.full((4, 4), 0.5)
    weights[0, 3] = 8.5
    address, peak = figures.attention_overlay(image, weights, side=64)
    assert peak == pytest.approx(8.5 / 1.0)
    tint = pixels(address)[..., 0] - pixels(address)[..., 2]
    assert tint[8, 56] > 100 and abs(tint[40:, :40]).max() < 12
    flat, peak = figures.attention_overlay(image, np.full((4, 4), 0.3), side=64)
    assert peak == pytest.approx(1.0) and abs(np.diff(pixels(flat), axis=-1)).max() < 6
    assert pixels(figures.plain_image(np.zeros((50, 100), np.uint8), side=80)).shape == (40, 80, 3)


def test_long_curves_are_thinned_and_keep_their_ends():
    x = np.linspace(0, 1, 50_000)
    thin_x, thin_y = figures._thinned(x, x**0.1)
    assert len(thin_x) <= figures.MAX_CURVE_POINTS and thin_x[0] == 0 and thin_x[-1] == 1
    np.testing.assert_allclose(np.trapezoid(thin_y, thin_x), 1 / 1.1, atol=1e-3)


def test_page_renders_in_a_browser(written, tmp_path):
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    quiet = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    quiet += ["--disable-component-update", "--disable-sync", "--hide-scrollbars"]
    picture = tmp_path / "page.png"
    command = [browser, "--headless", "--no-sandbox", *quiet, f"--user-data-dir={tmp_path / 'profile'}"]
    command += [f"--screenshot={picture}", "--window-size=1280,2000", written[0].as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    shown = np.asarray(Image.open(picture).convert("L")).astype(int)
    assert shown.shape == (2000, 1280)
    assert np.std(shown) > 5 and np.abs(shown - np.median(shown)).max() > 100  # ink on paper, not a blank page

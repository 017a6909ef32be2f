"""Entry: a checkpoint to numbers that hold up in review.

    python -m cxr_jax.evaluate --config=configs/eval/head.py --workdir=DIR --config.init_from=FINETUNED_RUN
    python -m cxr_jax.evaluate --config=configs/eval/linear.py --workdir=DIR --config.init_from=PRETRAINED_RUN \\
        --config.data.path=DATASET --config.data.targets="('sex:F',)"

In: a run and a protocol. Out: results.json (ranking, decisions at a threshold, calibration, subgroups and audits, with
patient-level bootstrap intervals), predictions.csv, and report.html, with baselines beside: the same protocol on a
random network, and hand-made features.

What is chosen is chosen on selection rows; no test row takes part. A run that has learnt labels of test patients is
refused. Unknown labels are never negatives.
"""

from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from cxr_jax import config as door
from cxr_jax.checks import check_evaluation
from cxr_jax.config import call, require
from cxr_jax.evals import classification, mask_protocol, report
from cxr_jax.evals.attention import example_cases
from cxr_jax.evals.audits import Evidence, run_audits
from cxr_jax.evals.cached_columns import curve_section, curves_of
from cxr_jax.evals.columns import PROTOCOLS, Asked, Source, open_source, score_columns
from cxr_jax.evals.early import check_later_stages
from cxr_jax.evals.excluded import excluded
from cxr_jax.evals.frozen import frozen_features
from cxr_jax.evals.long_tail import groups_by_frequency
from cxr_jax.evals.measures import Options, difference, measure
from cxr_jax.evals.people import read_people
from cxr_jax.evals.per_image_protocols import PER_IMAGE, TRAINED_FOR
from cxr_jax.evals.per_image_report import publish
from cxr_jax.evals.predictions import write_predictions
from cxr_jax.evals.protocols import Scores
from cxr_jax.evals.publishing import together
from cxr_jax.evals.seen import Scored, origin, require_unseen, sentences
from cxr_jax.evals.studies import by_study, pair_views
from cxr_jax.evals.subgroups import subgroups
from cxr_jax.evals.task import ROLES, Task, open_task
from cxr_jax.sharding import batch_sharding, data_shards, make_mesh

# What the report says of rows that are not images.
STUDY_ROWS = {
    "average": "a study, by the mean score of its images",
    "concatenate": "a study, the tokens of a frontal and a lateral image side by side (hand-made: the frontal)",
}


def choice(asked: ConfigDict, otherwise: dict[str, str]) -> dict[str, str]:
    """Fields of rows that are asked for, else those of `otherwise`; `any` asks for no value of that field."""
    found = {field: value or otherwise.get(field, "") for field, value in asked.items()}
    return {field: value for field, value in found.items() if value and value != "any"}


def choices(config: ConfigDict, meta: dict[str, Any]) -> dict[str, dict[str, str]]:
    """The choice of rows by role; where the config is silent, that which the run was trained on."""
    data, trained = config.data, meta["config"]["data"]["where"]
    where = {field: value or trained.get(field, "") for field, value in data.where.items()}
    seen = choice(data.train_where, where)
    return {"train": seen, "select": seen, "test": choice(data.where, trained)}


def task_of(config: ConfigDict, meta: dict[str, Any]) -> Task:
    """The rows that the config asks for; where it is silent, those that the run was trained for."""
    data, trained = config.data, meta["config"]["data"]
    targets = tuple(data.targets or meta.get("targets", ()))
    require(len(targets) > 0, "config.data.targets is empty; name findings, or attributes such as sex:F")
    names = (data.train_split, data.select_split, data.split)
    mesh = call(make_mesh, "mesh", dict(config.mesh))
    shards = data_shards(mesh)
    require(
        config.batch_size % shards == 0,
        f"config.batch_size={config.batch_size} must be a multiple of {shards}, the devices that share it",
    )
    as_given = {name: data[name] for name in ("cache_dir", "train_path", "only_images", "train_only_images")}
    rows = choices(config, meta)
    return call(
        open_task,
        "data",
        {"path": data.path or trained["path"], **as_given},
        splits=dict(zip(ROLES, names, strict=True)),
        where=rows["test"],
        train_where=rows["train"],
        targets=targets,
        flip=config.test_time_flip,
        trains=config.protocol not in ("head", "localisation"),
        batch_size=config.batch_size,
        sharding=batch_sharding(mesh),
    )


def masked_of(config: ConfigDict, meta: dict[str, Any]) -> mask_protocol.Masked:
    """The rows with masks that the config asks for; where it is silent, those that the run was trained for."""
    data, trained = config.data, meta["config"]["data"]
    where = {field: value or trained["where"].get(field, "") for field, value in data.where.items()}
    return call(
        mask_protocol.open_masked,
        "data",
        {"path": data.path or trained["path"], "cache_dir": data.cache_dir},
        splits=dict(zip(ROLES, (data.train_split, data.select_split, data.split), strict=True)),
        where={field: value for field, value in where.items() if value and value != "any"},
        batch_size=config.batch_size,
        sharding=batch_sharding(call(make_mesh, "mesh", dict(config.mesh))),
    )


def training_rows(config: ConfigDict, source: Source, task: Task | mask_protocol.Masked) -> dict[str, dict[str, Any]]:
    """What the run and those beside it were trained on. Raises DataError when that were test patients."""
    data = config.data
    where = choices(config, source.meta)["test"]
    scored = Scored(task.splits, data.path or source.meta["config"]["data"]["path"], where, data.cache_dir)
    return require_unseen((source, *map(open_source, config.baselines.runs)), scored)


# Which rows a protocol of `PER_IMAGE` looks at, where that is not `task_of`.
ROWS = {"segmentation": masked_of}


def score_each_image(config: ConfigDict, workdir: Path, source: Source) -> None:
    """One of `PER_IMAGE` -> results.json, predictions.csv, report.html."""
    found, wanted = source.meta["objective"], TRAINED_FOR[config.protocol]
    require(
        found == wanted,
        f"{config.init_from} was trained for {found}; legal is {wanted} with config.protocol={config.protocol!r}",
    )
    task = ROWS.get(config.protocol, task_of)(config, source.meta)
    training = training_rows(config, source, task)
    asked = {"runs": config.baselines.runs, "floor": config.baselines.floor, "pictures": config.attention_images}
    environment = door.environment()
    lines = publish(
        workdir,
        PER_IMAGE[config.protocol](source, task, **asked),
        title=f"{config.protocol} of {Path(config.init_from).name}",
        evaluated={
            "run": str(config.init_from),
            "checkpoint step": source.meta["step"],
            "protocol": config.protocol,
            **origin(source, training),
            "dataset fingerprint": task.splits["test"].manifest.fingerprint,
            "rows of this evaluation": rows_by_role(task),
        },
        training=training,
        remarks=sentences(training),
        environment={"python": environment["python"], **environment["packages"]},
        bootstrap=config.bootstrap.to_dict(),
    )
    print(*lines, sep="\n")
    print(f"written: {workdir / 'results.json'}, {workdir / 'report.html'}, {workdir / 'predictions.csv'}")


def options_of(config: ConfigDict) -> Options:
    """How the numbers are made."""
    return call(Options, "metrics", config.metrics.to_dict(), **config.bootstrap.to_dict())


def tabulate(task: Task, columns: dict[str, Scores], options: Options, groups: dict) -> list[report.Column]:
    """Metrics of every column, and for all but the first the paired difference from it."""
    first, table = next(iter(columns.values())), []
    known = {"patient_ids": task.patients["test"], "class_names": task.targets, "options": options}
    for name, scores in columns.items():
        results = call(measure, "bootstrap", {}, scores=scores, labels=task.labels, groups=groups, **known)
        apart = difference(first, scores, task.labels["test"], **known) if table else None
        table.append(report.Column(name, scores.test, results, apart, scores.kind))
    return table


def surroundings(
    config: ConfigDict, source: Source, task: Task, scores: Scores, results: dict, options: Options
) -> dict[str, Any]:
    """What stands beside the scores of the evaluated column: subgroups, audits and example images."""
    people = {role: read_people(split) for role, split in task.splits.items()}
    thresholds = {name: entry["thresholds"]["f1"] for name, entry in results["per_class"].items()}
    groups = call(
        subgroups,
        "subgroups",
        config.subgroups.to_dict(),
        scores=scores.test,
        labels=task.labels["test"],
        people=people["test"],
        class_names=task.targets,
        thresholds=thresholds,
        options=options,
    )
    evidence = Evidence(
        task, people, scores.test, lambda: frozen_features(source, task, scores, config.network), options
    )
    return {
        "people": people["test"],
        "subgroups": groups,
        "audits": call(run_audits, "audits", {"settings": config.audits.to_dict()}, evidence=evidence),
        "examples": example_cases(source, task, people["test"], scores, thresholds, config.attention_images),
    }


def rows_by_role(task: Task | mask_protocol.Masked) -> str:
    """How many rows play which part in an evaluation; a trained head has had training rows of its own."""
    return ", ".join(f"{role} {len(split):,} ({split.name})" for role, split in task.splits.items())


def chosen_how(scores: Scores) -> str:
    """What the report says of choices."""
    if "selection" in scores.chosen:
        return f"No test row took part in a choice. But {scores.chosen['selection']}."
    return "What is chosen was chosen on the selection rows; no test row took part in a choice."


def spoken_auroc(results: dict[str, Any]) -> str:
    """The mean AUROC and its interval in words, or why there is none."""
    score, interval = results["auroc_macro"], results["auroc_macro_interval"]
    if score is None:
        reasons = {scores["undefined"] for scores in results["per_class"].values()}
        return f"AUROC undefined: {'; '.join(sorted(reasons))}"
    return f"AUROC {score:.3f} " + ("(no interval)" if interval is None else "[{:.3f}, {:.3f}]".format(*interval))


def main() -> None:
    """Run, protocol -> columns of scores -> results.json, predictions.csv, report.html."""
    config, workdir = flags.FLAGS.config, Path(flags.FLAGS.workdir)
    check_evaluation(config, (*PROTOCOLS, *PER_IMAGE))
    check_later_stages(config.to_dict())
    door.lock_workdir(workdir)
    source = open_source(config.init_from, None if config.step < 0 else config.step)
    if config.protocol in PER_IMAGE:
        return score_each_image(config, workdir, source)
    meta, options = source.meta, options_of(config)
    require(
        config.protocol != "head" or meta["objective"] == "supervised",
        f"{config.init_from} was trained for {meta['objective']} and has no head for labels: fine-tune it first "
        "(configs/finetune), or take config.protocol=linear_probe or knn; masks are scored by segmentation",
    )
    task = task_of(config, meta)
    training = training_rows(config, source, task)
    left_out = excluded(task, choices(config, meta))
    if config.study == "concatenate":
        task = pair_views(task)
    known = {"train_labels": task.labels["train"], "class_names": task.targets}
    groups = call(groups_by_frequency, "long_tail", config.long_tail.to_dict(), **known)
    settings = {name: section.to_dict() for name, section in config.items() if isinstance(section, ConfigDict)}
    baselines = config.baselines.to_dict()
    floor = baselines.pop("floor")
    asked = Asked(network=config.network, probe=config.probe.to_dict(), settings=settings, **baselines)
    columns = score_columns(source, task, protocol=config.protocol, asked=asked, floor=floor)
    if config.study == "average":
        task, columns = by_study(task, columns)
    table = tabulate(task, columns, options, groups)
    first = columns[table[0].name]
    beside = surroundings(config, source, task, first, table[0].results, options)

    facts = {
        "run": str(config.init_from),
        "checkpoint step": meta["step"],
        "protocol": config.protocol,
        "column": table[0].name,
        **origin(source, training),
        **({"learning rate": f"{first.chosen['learning_rate']:g}"} if "learning_rate" in first.chosen else {}),
        "dataset fingerprint": task.splits["test"].manifest.fingerprint,
        "split": task.splits["test"].name,
        "targets": ", ".join(task.targets),
        "rows of this evaluation": rows_by_role(task),
        **({"a row": STUDY_ROWS[config.study]} if config.study in STUDY_ROWS else {}),
        **({"test images": "with their mirror pictures, scores averaged"} if config.test_time_flip else {}),
        **({"only the images of": config.data.only_images} if config.data.only_images else {}),
    }
    environment = door.environment()
    results = table[0].results | {
        "evaluated": facts | {"chosen": first.chosen},
        "training": training,
        "baselines": {
            column.name: column.results | {"difference": column.difference, "chosen": columns[column.name].chosen}
            for column in table[1:]
        },
        "subgroups": beside["subgroups"],
        "audits": beside["audits"],
        "excluded": left_out,
        "environment": environment,
    }
    if curves := curves_of(columns):
        results["label_efficiency"] = curves
    metrics = Path(config.init_from) / "metrics.jsonl"
    scores = {name: scores.test for name, scores in columns.items()}
    with together(workdir) as (page, predictions, numbers):
        report.write_report(
            page,
            title=f"{', '.join(task.targets)}: {config.protocol} on {Path(config.init_from).name}",
            evaluated=facts,
            class_names=task.targets,
            labels=task.labels["test"],
            columns=table,
            attention=beside["examples"],
            metrics_path=metrics if metrics.exists() else None,
            environment={"python": environment["python"], **environment["packages"]},
            extra=curve_section(columns, settings),
            notes=(chosen_how(first), *sentences(training)),
            subgroups=beside["subgroups"],
            audits=beside["audits"],
            excluded=left_out,
            settings=settings,
        )
        write_predictions(predictions, task, beside["people"], scores)
        classification.write_results(numbers, results)
    for column in table:
        print(f"{column.name:24s} {spoken_auroc(column.results)}")
    for warning in beside["audits"]["warnings"]:
        print(f"warning: {warning}")
    print(f"written: {workdir / 'results.json'}, {workdir / 'report.html'}, {workdir / 'predictions.csv'}")


if __name__ == "__main__":
    door.define_flags()
    door.run_entry(main)

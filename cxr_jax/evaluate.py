"""Entry: a checkpoint to numbers that hold up in review.

    python -m cxr_jax.evaluate --config=configs/eval/head.py --workdir=DIR --config.init_from=FINETUNED_RUN
    python -m cxr_jax.evaluate --config=configs/eval/linear.py --workdir=DIR --config.init_from=PRETRAINED_RUN \\
        --config.data.path=DATASET --config.data.targets="('sex:F',)"

In: a run and a protocol. Out: results.json (AUROC and AUPRC with patient-level bootstrap intervals), predictions.csv,
and report.html, with baselines beside: the same protocol on a random network, and hand-made features.

Everything is chosen on the selection split and scored once on the test split. Unknown labels are never negatives.
"""

from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from cxr_jax import config as door
from cxr_jax.checks import check_evaluation
from cxr_jax.config import call, require
from cxr_jax.evals import classification, mask_protocol, report
from cxr_jax.evals.attention import attention_cases
from cxr_jax.evals.cached_columns import curve_section, curves_of
from cxr_jax.evals.columns import PROTOCOLS, Source, open_source, score_columns
from cxr_jax.evals.per_image_protocols import PER_IMAGE
from cxr_jax.evals.per_image_report import publish
from cxr_jax.evals.predictions import write_predictions
from cxr_jax.evals.protocols import Scores
from cxr_jax.evals.studies import by_study, pair_views
from cxr_jax.evals.task import ROLES, Task, open_task
from cxr_jax.sharding import batch_sharding, data_shards, make_mesh

# What the report says of rows that are not images.
ROWS = {
    "average": "a study, by the mean score of its images",
    "concatenate": "a study, the tokens of a frontal and a lateral image side by side (hand-made: the frontal)",
}


def choice(asked: ConfigDict, otherwise: dict[str, str]) -> dict[str, str]:
    """Fields of rows that are asked for, else those of `otherwise`; `any` asks for no value of that field."""
    found = {field: value or otherwise.get(field, "") for field, value in asked.items()}
    return {field: value for field, value in found.items() if value and value != "any"}


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
    where = {field: value or trained["where"].get(field, "") for field, value in data.where.items()}
    return call(
        open_task,
        "data",
        {"path": data.path or trained["path"], **as_given},
        splits=dict(zip(ROLES, names, strict=True)),
        where=choice(data.where, trained["where"]),
        train_where=choice(data.train_where, where),
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


# Which rows a protocol of `PER_IMAGE` looks at, where that is not `task_of`.
ROWS = {"segmentation": masked_of}


def score_each_image(config: ConfigDict, workdir: Path, source: Source) -> None:
    """One of `PER_IMAGE` -> results.json, predictions.csv, report.html."""
    task = ROWS.get(config.protocol, task_of)(config, source.meta)
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
            "dataset fingerprint": task.splits["test"].manifest.fingerprint,
            "rows": ", ".join(f"{role} {len(split)} of {split.name}" for role, split in task.splits.items()),
        },
        environment={"python": environment["python"], **environment["packages"]},
        bootstrap=config.bootstrap.to_dict(),
    )
    print(*lines, sep="\n")
    print(f"written: {workdir / 'results.json'}, {workdir / 'report.html'}, {workdir / 'predictions.csv'}")


def tabulate(task: Task, columns: dict[str, Scores], bootstrap: dict[str, Any]) -> list[report.Column]:
    """Metrics of every column, and for all but the first the paired difference from it."""
    known = {"labels": task.labels["test"], "patient_ids": task.patients["test"], "class_names": task.targets}
    first = next(iter(columns.values())).test
    table = []
    for name, scores in columns.items():
        results = call(classification.evaluate, "bootstrap", bootstrap, scores=scores.test, **known)
        difference = None
        if table:
            difference = classification.compare(first, scores.test, **known, **bootstrap)
        table.append(report.Column(name, scores.test, results, difference))
    return table


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
    door.lock_workdir(workdir)
    source = open_source(config.init_from, None if config.step < 0 else config.step)
    if config.protocol in PER_IMAGE:
        return score_each_image(config, workdir, source)
    meta = source.meta
    require(
        config.protocol != "head" or meta["objective"] == "supervised",
        f"{config.init_from} is a pretraining and has no head: fine-tune it first (configs/finetune), "
        "or take config.protocol=linear_probe or knn",
    )
    task = task_of(config, meta)
    if config.study == "concatenate":
        task = pair_views(task)
    settings = {name: section.to_dict() for name, section in config.items() if isinstance(section, ConfigDict)}
    columns = score_columns(
        source,
        task,
        protocol=config.protocol,
        network=config.network,
        probe=config.probe.to_dict(),
        **config.baselines.to_dict(),
        settings=settings,
    )
    if config.study == "average":
        task, columns = by_study(task, columns)
    table = tabulate(task, columns, config.bootstrap.to_dict())

    facts = {
        "run": str(config.init_from),
        "checkpoint step": meta["step"],
        "protocol": config.protocol,
        "dataset fingerprint": task.splits["test"].manifest.fingerprint,
        "split": task.splits["test"].name,
        "targets": ", ".join(task.targets),
        "rows": ", ".join(f"{role} {len(split)}" for role, split in task.splits.items()),
        **({"a row": ROWS[config.study]} if config.study in ROWS else {}),
        **({"test images": "with their mirror pictures, scores averaged"} if config.test_time_flip else {}),
        **({"only the images of": config.data.only_images} if config.data.only_images else {}),
    }
    environment = door.environment()
    results = table[0].results | {
        "evaluated": facts | {"column": table[0].name, "chosen": columns[table[0].name].chosen},
        "baselines": {
            column.name: column.results | {"difference": column.difference, "chosen": columns[column.name].chosen}
            for column in table[1:]
        },
        "environment": environment,
    }
    if curves := curves_of(columns):
        results["label_efficiency"] = curves
    metrics = Path(config.init_from) / "metrics.jsonl"
    report.write_report(
        workdir / "report.html",
        title=f"{', '.join(task.targets)}: {config.protocol} on {Path(config.init_from).name}",
        evaluated=facts,
        class_names=task.targets,
        labels=task.labels["test"],
        columns=table,
        attention=attention_cases(source, task, columns[table[0].name], config.attention_images),
        metrics_path=metrics if metrics.exists() else None,
        environment={"python": environment["python"], **environment["packages"]},
        extra=curve_section(columns, settings),
        notes=("Everything was chosen on the selection split; the test split was scored once.",),
    )
    write_predictions(workdir / "predictions.csv", task, {name: scores.test for name, scores in columns.items()})
    classification.write_results(workdir / "results.json", results)
    for column in table:
        print(f"{column.name:24s} {spoken_auroc(column.results)}")
    print(f"written: {workdir / 'results.json'}, {workdir / 'report.html'}, {workdir / 'predictions.csv'}")


if __name__ == "__main__":
    door.define_flags()
    door.run_entry(main)

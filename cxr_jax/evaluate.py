"""Entry: a checkpoint to numbers that hold up in review.

    python -m cxr_jax.evaluate --config=configs/eval/head.py --workdir=DIR --config.init_from=FINETUNED_RUN
    python -m cxr_jax.evaluate --config=configs/eval/linear.py --workdir=DIR --config.init_from=PRETRAINED_RUN \\
        --config.data.path=DATASET --config.data.targets="('sex:F',)"

In: a run and a protocol. Out: results.json (AUROC and AUPRC with patient-level bootstrap intervals), predictions.csv,
and report.html, with baselines beside: the same protocol on a random network, and hand-made features.

Everything is chosen on the selection split and scored once on the test split. Unknown labels are never negatives.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from cxr_jax import checkpoint
from cxr_jax import config as door
from cxr_jax.checks import check_evaluation
from cxr_jax.config import RunError, call, require
from cxr_jax.data.augment import CropRecipe
from cxr_jax.data.source import Split
from cxr_jax.evals import classification, protocols, report
from cxr_jax.evals.features import Geometry, random_backbone
from cxr_jax.evals.protocols import Scores
from cxr_jax.evals.task import ROLES, Task, open_task, write_predictions
from cxr_jax.objectives.supervised import Supervised
from cxr_jax.sharding import batch_sharding, data_shards, make_mesh

NETWORKS = {"teacher": "targets", "student": "params"}


def task_of(config: ConfigDict, meta: dict[str, Any]) -> Task:
    """The rows that the config asks for; where it is silent, those that the run was trained for."""
    trained = meta["config"]["data"]
    targets = tuple(config.data.targets or meta.get("targets", ()))
    require(len(targets) > 0, "config.data.targets is empty; name findings, or attributes such as sex:F")
    where = {field: value or trained["where"][field] for field, value in config.data.where.items()}
    names = (config.data.train_split, config.data.select_split, config.data.split)
    mesh = call(make_mesh, "mesh", dict(config.mesh))
    shards = data_shards(mesh)
    require(
        config.batch_size % shards == 0,
        f"config.batch_size={config.batch_size} must be a multiple of {shards}, the devices that share it",
    )
    return call(
        open_task,
        "data",
        {"path": config.data.path or trained["path"], "cache_dir": config.data.cache_dir},
        splits=dict(zip(ROLES, names, strict=True)),
        where={field: value for field, value in where.items() if value},
        targets=targets,
        batch_size=config.batch_size,
        sharding=batch_sharding(mesh),
    )


def geometry_of(meta: dict[str, Any]) -> Geometry:
    """The geometry that the checkpoint names."""
    return Geometry(meta["geometry"]["fit"], meta["geometry"]["image_size"])


def trained_head(meta: dict[str, Any]) -> Supervised:
    """The objective of a fine-tuned run, from its checkpoint alone."""
    head = dict(meta["head"])
    name, crop = head.pop("name"), CropRecipe(size=meta["geometry"]["image_size"], scale=(1.0, 1.0))
    return Supervised(meta["model"], name, head, tuple(meta["learning_rates"]), crop)


def head_scores(run: str, step: int | None, task: Task) -> Scores:
    """The run's own heads: the learning rate with the best mean AUROC on the selection split scores the test split."""
    meta = checkpoint.read_meta(run, step)
    require(meta["objective"] == "supervised", f"config.baselines.runs: {run} is not a fine-tuned run")
    require(
        tuple(meta["targets"]) == task.targets, f"{run} was trained for {meta['targets']}, not for {list(task.targets)}"
    )
    objective = trained_head(meta)
    networks = tuple(checkpoint.read_item(run, item, step) for item in ("params", "targets"))

    def function(networks, images):
        features = objective.features(*networks, images, blocks=objective.head["blocks"])
        return {"logits": objective.logits(networks[0], features).swapaxes(0, 1)}

    run_split = task.runner(function, geometry_of(meta))
    logits = {role: run_split(task.splits[role], networks)["logits"] for role in ROLES[1:]}
    grid = [
        protocols.mean_auroc(logits["select"][:, i], task.labels["select"])
        for i in range(len(objective.learning_rates))
    ]
    best = int(np.argmax(grid))
    rates = dict(zip(map(str, objective.learning_rates), grid, strict=True))
    chosen = {
        "learning_rate": objective.learning_rates[best],
        "selection_auroc": rates,
        "pretrained": meta["pretrained"],
    }
    return Scores(logits["test"][:, best], chosen)


def score_columns(config: ConfigDict, meta: dict[str, Any], task: Task) -> dict[str, Scores]:
    """The evaluated run first, then the baselines that the config asks for."""
    run, step, geometry = config.init_from, checkpoint_step(config), geometry_of(meta)
    if config.protocol == "head":
        columns = {column_name(run, meta, ()): head_scores(run, step, task)}
        for other in config.baselines.runs:
            scores = head_scores(other, None, task)
            columns[column_name(other, checkpoint.read_meta(other), columns)] = scores
    else:
        network = checkpoint.network_of(meta, config.network)
        if network != config.network:
            print(f"{run} was trained without a teacher; its one network, the student, is evaluated")
        params = checkpoint.read_item(run, NETWORKS[network], step)["backbone"]
        backbones = {f"pretrained ({network})": params}
        if config.baselines.random:
            backbones["random network"] = random_backbone(meta["model"], seed=0)
        score, options = {
            "linear_probe": (protocols.linear_probe_scores, ("blocks", "tokens")),
            "knn": (protocols.knn_scores, ("k", "tokens")),
        }[config.protocol]
        probe = {name: config.probe[name] for name in options}
        columns = {}
        for name, backbone in backbones.items():
            try:
                columns[name] = score(task, meta["model"], backbone, geometry, **probe)
            except ValueError as error:
                raise RunError(f"{run}, step {meta['step']}, {name}: its features cannot be scored: {error}") from None
    if config.baselines.floor:
        columns["hand-made features"] = protocols.floor_scores(task, geometry.fit)
    return columns


def checkpoint_step(config: ConfigDict) -> int | None:
    """The step to read; -1 in the config is the newest."""
    return None if config.step < 0 else config.step


def column_name(run: str, meta: dict[str, Any], taken: Collection[str]) -> str:
    """What the report calls a fine-tuned run: its backbone, and where that is `taken`, the run as well."""
    network = meta["pretrained"]["network"]
    name = "random network" if network == "random" else f"pretrained ({network})"
    return f"{name}, {run}" if name in taken else name


def attention_cases(run: str, step: int | None, task: Task, scores: Scores, count: int) -> list[dict[str, Any]]:
    """Images of the test split with what GLoRI's queries look at: the surest positives and negatives."""
    meta = checkpoint.read_meta(run, step)
    if not count or meta["head"]["name"] != "glori":
        return []
    objective, split, geometry = trained_head(meta), task.splits["test"], geometry_of(meta)
    order = np.argsort(scores.test[:, 0])
    wanted = [*order[::-1][: -(-count // 2)], *order[: count // 2]]
    networks = tuple(checkpoint.read_item(run, item, step) for item in ("params", "targets"))
    best = meta["learning_rates"].index(scores.chosen["learning_rate"])

    def function(networks, images):
        features = objective.features(*networks, images, blocks=objective.head["blocks"])
        head = objective.head_module(jax.tree.map(lambda leaf: leaf[best], networks[0]["head"]))
        return {"maps": head.attention(features).mean(1), "images": images}

    chosen = Split(split.records, np.asarray(split.rows)[wanted], split.manifest, split.name)
    out = task.runner(function, geometry)(chosen, networks)
    side = geometry.image_size // meta["model"]["patch_size"]
    cases = []
    for i, row in enumerate(wanted):
        image = np.clip((out["images"][i] * meta["geometry"]["std"] + meta["geometry"]["mean"]) * 255, 0, 255)
        maps = {name: out["maps"][i, c].reshape(side, side) for c, name in enumerate(task.targets)}
        known = {1: "positive", 0: "negative", -1: "unknown"}[int(task.labels["test"][row, 0])]
        caption = f"{split.text(int(row), 'image_id')}: {task.targets[0]} {known}, score {scores.test[row, 0]:.2f}"
        cases.append({"image": image.astype(np.uint8), "maps": maps, "caption": caption})
    return cases


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
    check_evaluation(config)
    door.lock_workdir(workdir)
    step = checkpoint_step(config)
    meta = checkpoint.read_meta(config.init_from, step)
    require(
        config.protocol != "head" or meta["objective"] == "supervised",
        f"{config.init_from} is a pretraining and has no head: fine-tune it first (configs/finetune), "
        "or take config.protocol=linear_probe or knn",
    )
    task = task_of(config, meta)
    columns = score_columns(config, meta, task)
    table = tabulate(task, columns, config.bootstrap.to_dict())

    facts = {
        "run": str(config.init_from),
        "checkpoint step": meta["step"],
        "protocol": config.protocol,
        "dataset fingerprint": task.splits["test"].manifest.fingerprint,
        "split": task.splits["test"].name,
        "targets": ", ".join(task.targets),
        "rows": ", ".join(f"{role} {len(split)}" for role, split in task.splits.items()),
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
    attention = []
    if config.protocol == "head":
        scores = columns[table[0].name]
        attention = attention_cases(config.init_from, step, task, scores, config.attention_images)
    metrics = Path(config.init_from) / "metrics.jsonl"
    report.write_report(
        workdir / "report.html",
        title=f"{', '.join(task.targets)}: {config.protocol} on {Path(config.init_from).name}",
        evaluated=facts,
        class_names=task.targets,
        labels=task.labels["test"],
        columns=table,
        attention=attention,
        metrics_path=metrics if metrics.exists() else None,
        environment={"python": environment["python"], **environment["packages"]},
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

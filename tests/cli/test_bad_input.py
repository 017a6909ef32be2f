"""Bad input is one line on stderr that names what is wrong, and exit code 2 (configuration) or 3 (data).

All command lines go through the real entries (`forked_entries`).
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import tensorflow_datasets as tfds

from configs import smoke
from cxr_jax.data.records import features, read_manifest
from cxr_jax.experiments import build
from cxr_jax.saving import Checkpoints
from cxr_jax.sharding import make_mesh
from cxr_jax.state import abstract_state
from data_prep.dataset_writer import DatasetWriter
from tests.export.tiny import random_backbone, tiny_model, write_hf

ROOT = Path(__file__).parents[2]
ERROR, CONFIG, DATA = 1, 2, 3
SMOKE = ["--config=configs/smoke.py", "--workdir={tmp}/run"]
RUN = [*SMOKE, "--config.data.path={data}"]
HEAD = ["--config=configs/finetune/linear.py", "--workdir={tmp}/run", "--config.data.path={data}"]
TARGET = "--config.data.targets=('Cardiomegaly',)"
TUNE = [*HEAD, TARGET, "--config.init_from={tmp}/other_run", "--config.head.blocks=1"]
PLAN = ["--config=configs/smoke.py"]
EVAL = ["--config=configs/eval/linear.py", "--workdir={tmp}/run", "--config.data.path={data}"]
CACHED = ["--config=configs/eval/linear_cached.py", *EVAL[1:], TARGET, "--config.init_from={tmp}/other_run"]
CACHED += ["--config.head.blocks=1"]

PROBE = [*RUN, "--config.probe.every_steps=5", "--config.probe.targets=('Cardiomegaly',)"]

# name: (entry, arguments, exit code, words that the one line must hold)
CASES = {
    "key_at_top": ("train", [*RUN, "--config.batchsize=8"], CONFIG, ("batchsize", "did you mean config.batch_size")),
    "key_nested": ("train", [*RUN, "--config.log.every_step=1"], CONFIG, ("config.log.every_steps",)),
    "key_in_model": ("train", [*RUN, "--config.model.depht=1"], CONFIG, ("config.model.depht", "config.model.depth")),
    "key_in_crops": ("train", [*RUN, "--config.crops.lokal_size=32"], CONFIG, ("config.crops.local_size", "num_local")),
    "key_elsewhere": ("train", [*RUN, "--config.local_size=32"], CONFIG, ("did you mean config.crops.local_size",)),
    "key_below_value": ("train", [*RUN, "--config.seed.x=32"], CONFIG, ("config.seed.x", "nothing below")),
    "seed": ("train", [*RUN, "--config.seed=-1"], CONFIG, ("config.seed=-1: legal are 0 to",)),
    "type": ("train", [*RUN, "--config.batch_size=many"], CONFIG, ("config.batch_size='many'", "int")),
    "type_bool": ("train", [*RUN, "--config.model.scan=perhaps"], CONFIG, ("config.model.scan", "bool")),
    "section": ("train", [*RUN, "--config.model=3"], CONFIG, ("config.model",)),
    "no_config": ("train", ["--workdir={tmp}/run"], CONFIG, ("--config",)),
    "config_absent": ("train", ["--config=configs/nope.py", "--workdir={tmp}/run"], CONFIG, ("configs/nope.py",)),
    "config_raises": ("train", ["--config={tmp}/raises.py", "--workdir={tmp}/run"], CONFIG, ("raises.py", "line 2")),
    "config_empty": ("train", ["--config={tmp}/empty.py", "--workdir={tmp}/run"], CONFIG, ("get_config",)),
    "config_last": ("train", ["--config.seed=1", *SMOKE], CONFIG, ("put --config=FILE before",)),
    "no_workdir": ("train", SMOKE[:1], CONFIG, ("--workdir",)),
    "flag": ("train", [*RUN, "--wrkdir=x"], CONFIG, ("wrkdir",)),
    "argument": ("train", [*RUN, "more"], CONFIG, ("'more'", "--name=value")),
    "workdir_unwritable": (
        "train",
        ["--config=configs/smoke.py", "--workdir={tmp}/empty.py/run", "--config.data.path={data}"],
        CONFIG,
        ("--workdir", "cannot be written"),
    ),
    "batch_size": ("train", [*RUN, "--config.batch_size=12"], CONFIG, ("config.batch_size=12", "multiple of 8")),
    "batch_size_zero": ("train", [*RUN, "--config.batch_size=0"], CONFIG, ("config.batch_size=0", "at least 1")),
    "every_steps_zero": ("train", [*RUN, "--config.log.every_steps=0"], CONFIG, ("config.log.every_steps=0",)),
    "keep_steps": (
        "train",
        [*RUN, "--config.checkpoint.every_steps=4", "--config.checkpoint.keep_steps=(5,8)"],
        CONFIG,
        ("config.checkpoint.keep_steps: [5] must be multiples of checkpoint.every_steps=4",),
    ),
    "best_metric": (
        "train",
        [*RUN, "--config.checkpoint.best_metric=auroc"],
        CONFIG,
        ("config.checkpoint.best_metric='auroc'", "config.probe.every_steps is 0"),
    ),
    "other_objective": (
        "train",
        [*RUN, "--config.objective.name=mae"],
        CONFIG,
        ("config.objective.name='mae' needs config.decoder, config.crop",),
    ),
    "group_size": ("train", [*RUN, "--config.objective.group_size=3"], CONFIG, ("group_size=3", "2 images")),
    "mesh": ("train", [*RUN, "--config.mesh.fsdp=3"], CONFIG, ("fsdp=3", "8 devices")),
    "crop_size": ("train", [*RUN, "--config.crops.local_size=40"], CONFIG, ("40 px", "patch_size=16")),
    "variant": ("train", [*RUN, "--config.model.variant=vit_xxl"], CONFIG, ("vit_xxl", "vit_l16")),
    "ffn": ("train", [*RUN, "--config.model.ffn=moe"], CONFIG, ("moe", "swiglu, mlp")),
    "blur": ("train", [*RUN, "--config.crops.blur_probs=none"], CONFIG, ("blur_probs", "as_released")),
    "pair": ("train", [*RUN, "--config.objective.ema=(0.9,)"], CONFIG, ("config.objective.ema", "pair")),
    "momentum": ("train", [*RUN, "--config.objective.ema=(1.5,2.0)"], CONFIG, ("config.objective.ema", "0 to 1")),
    "on_collapse": ("train", [*RUN, "--config.log.on_collapse=explode"], CONFIG, ("on_collapse='explode'", "stop")),
    "weight": ("train", [*RUN, "--config.objective.gram_weight=-1"], CONFIG, ("gram_weight=-1", "at least 0")),
    "objective": ("train", [*RUN, "--config.objective.name=jepa"], CONFIG, ("jepa", "self_distillation")),
    "dtype": ("train", [*RUN, "--config.dtypes.compute=float7"], CONFIG, ("float7",)),
    "init_from_no_run": ("train", [*RUN, "--config.init_from={tmp}/nowhere"], CONFIG,
                         ("config.init_from=", "nowhere: no such folder")),
    "init_from_other": ("train", [*RUN, "--config.init_from={tmp}/other_run"], CONFIG, ("other_run", "architecture")),
    "init_from_other_step": ("train", [*RUN, "--config.init_from={tmp}/other_run", "--config.init_step=7"],
                             CONFIG, ("no checkpoint of step 7", "it has 0")),
    "init_step": ("train", [*RUN, "--config.init_from={tmp}/other_run", "--config.init_step=-3"],
                  CONFIG, ("config.init_step=-3", "-1, the newest")),
    "init_parts": ("train", [*RUN, "--config.init_parts=head"], CONFIG,
                   ("config.init_parts='head'", "networks, backbone, everything")),
    "init_network": ("train", [*RUN, "--config.init_network=random"], CONFIG, ("config.init_network", "teacher, both")),
    "init_from_weights": ("train", [*RUN, "--config.init_from={tmp}/weights"], CONFIG,
                          ("config.init_parts='networks'", "weights", "legal is backbone")),
    "init_from_bad_weights": ("train", [*RUN, "--config.init_from={tmp}/no_weights", "--config.init_parts=backbone"],
                              DATA, ("config.init_from=", "config.json", "model_type is missing")),
    "schedules_from": ("train", [*RUN, "--config.schedules_from=on"], CONFIG, ("schedules_from", "restart, continue")),
    "schedules_of_weights": ("train", [*RUN, "--config.init_from={tmp}/weights", "--config.schedules_from=continue"],
                             CONFIG, ("config.schedules_from='continue'", "legal is restart")),
    "schedule": ("train", [*RUN, "--config.optim.schedule=step"], CONFIG,
                 ("config.optim.schedule='step'", "cosine, constant_cooldown")),
    "schedule_overlap": ("train", [*RUN, "--config.optim.schedule=constant_cooldown", "--config.optim.warmup_frac=0.6",
                                   "--config.optim.cooldown_frac=0.6"], CONFIG, ("config.optim.cooldown_frac=0.6",)),
    "fraction": ("train", [*RUN, "--config.optim.warmup_frac=1.5"], CONFIG, ("config.optim.warmup_frac=1.5", "0 to 1")),
    "fraction_below": ("train", [*RUN, "--config.optim.frozen_backbone_frac=-0.1"], CONFIG,
                       ("config.optim.frozen_backbone_frac=-0.1", "0 to 1")),
    "prototypes": ("train", [*RUN, "--config.mesh.tensor=2", "--config.heads.ibot_head.num_prototypes=255"], CONFIG,
                   ("config.heads.ibot_head.num_prototypes=255", "multiple of 2", "config.mesh.tensor")),
    "image_size": ("train", [*RUN, "--config.model.image_size=70"], CONFIG, ("config.model.image_size=70", "is 64")),
    "processes": ("train", [*RUN, "--num_processes=2"], CONFIG, ("--coordinator_address", "--process_id")),
    "data_empty": ("train", SMOKE, CONFIG, ("config.data.path", "data_prep.build")),
    "data_missing": ("train", [*SMOKE, "--config.data.path={tmp}/nowhere"], DATA, ("nowhere", "data_prep.build")),
    "data_unfinished": ("train", [*SMOKE, "--config.data.path={tmp}/unfinished"], DATA, ("did not finish",)),
    "data_other": ("train", [*SMOKE, "--config.data.path={tmp}/other_run"], DATA, ("other_run", "manifest.json")),
    "split": ("train", [*RUN, "--config.data.split=dev"], DATA, ("config.data: ", "'dev'", "train, val, test")),
    "nothing_left": ("train", [*RUN, "--config.data.where.source=mars"], DATA, ("mars", "has source phantom")),
    "no_such_sex": ("train", [*RUN, "--config.data.where.sex=female"], DATA, ("sex=female", "has sex M, F")),
    "shard_cut": ("train", [*SMOKE, "--config.data.path={tmp}/cut"], DATA, ("shard is damaged", "build the dataset")),
    "shard_gone": ("train", [*SMOKE, "--config.data.path={tmp}/gone"], DATA, ("array_record", "is missing")),
    "crop_aspect": ("train", [*RUN, "--config.crops.aspect=(1.0,)"], CONFIG, ("aspect=(1.0,)", "two rising")),
    "crop_extra": ("train", [*RUN, "--config.crops.extra.gama=0.1"], CONFIG, ("mean config.crops.extra.gamma",)),
    "crop_strength": ("train", [*RUN, "--config.crops.extra.gamma=-1"], CONFIG, ("extra.gamma=-1", "at least 0")),
    "crop_prob": ("train", [*RUN, "--config.crops.flip_prob=50"], CONFIG, ("config.crops: flip_prob=50", "0 to 1")),
    "crop_local": ("train", [*RUN, "--config.crops.local_size=128"], CONFIG, ("config.crops.local_size=128", "=64")),
    "crop_scale": ("train", [*RUN, "--config.crops.local_scale=(0.5,0.1)"], CONFIG, ("scale", "rising")),
    "checkpoint_cut": ("train", [*HEAD, TARGET, "--config.init_from={tmp}/cut_run", "--config.head.blocks=1"],
                       DATA, ("cut_run", "checkpoint 0 is damaged")),
    "checkpoint_item_gone": ("convert", ["--input={tmp}/half_run", "--output={tmp}/out", "--format=hf"],
                             DATA, ("half_run", "targets is gone")),
    "evaluate_headless": ("evaluate", ["--config=configs/eval/head.py", "--workdir={tmp}/run", TARGET,
                                       "--config.init_from={tmp}/other_run", "--config.data.path={data}"],
                          CONFIG, ("no head", "linear_probe")),
    "evaluate_into_data": ("evaluate", [*EVAL[:1], "--workdir={data}", TARGET, "--config.init_from={tmp}/other_run"],
                           CONFIG, ("is a dataset",)),
    "damaged_jpeg": ("train", [*SMOKE, "--config.data.path={tmp}/damaged"], DATA, ("damaged JPEG",)),
    "target": ("train", [*HEAD, "--config.init_from={tmp}/other_run", "--config.head.blocks=1",
                         "--config.data.targets=('Lupus',)"], DATA, ("Lupus", "Cardiomegaly")),
    "targets_empty": ("train", [*HEAD, "--config.init_from={tmp}/other_run"], CONFIG, ("config.data.targets",)),
    "head_from_nothing": ("train", [*HEAD, TARGET], CONFIG, ("config.init_from",)),
    "head_network": ("train", [*HEAD, TARGET, "--config.init_network=pupil"], CONFIG, ("config.init_",)),
    "head_blocks": ("train", [*HEAD, TARGET, "--config.init_from={tmp}/other_run"], CONFIG, ("config.head.blocks=4",)),
    "head_pyramid": ("train", ["--config=configs/finetune/glori.py", *HEAD[1:], TARGET, "--config.head.blocks=1",
                               "--config.init_from={tmp}/other_run", "--config.head.pyramid=(8,4)"],
                     CONFIG, ("config.head.pyramid=(8, 4)", "2 x 2 patches")),
    "head_rates": ("train", [*TUNE, "--config.objective.backbone=full"], CONFIG,
                   ("config.optim.learning_rates has 13 rates", "name one rate")),
    "head_drop_path": ("train", [*TUNE, "--config.objective.drop_path=0.1"], CONFIG,
                       ("config.objective.drop_path=0.1", "frozen")),
    "head_layer_decay": ("train", [*TUNE, "--config.optim.layer_decay=0.7"], CONFIG, ("config.optim.layer_decay=0.7",)),
    "head_loss": ("train", [*TUNE, "--config.label_loss.terms=('hinge',)"], CONFIG,
                  ("config.label_loss.terms=('hinge',)", "bce, focal")),
    "head_lora": ("train", [*TUNE, "--config.objective.backbone=lora", "--config.lora.rank=0",
                            "--config.optim.learning_rates=(0.1,)"], CONFIG, ("config.lora.rank=0", "1 to ")),
    "head_age": ("train", [*TUNE, "--config.data.targets=('age>60',)"], DATA, ("'age>60'", "age>=N (years)")),
    "head_all_rows": ("train", [*TUNE, "--config.data.split=train+val"], CONFIG,
                      ("config.data.split='train+val'", "optim.select_from")),
    "head_select_from": ("train", [*TUNE, "--config.optim.select_from={tmp}/nowhere"], CONFIG,
                         ("config.optim.select_from=", "nowhere", "results.json")),
    "evaluate_key": ("evaluate", [*EVAL, "--config.protocoll=x"], CONFIG, ("did you mean config.protocol",)),
    "evaluate_nothing": ("evaluate", [*EVAL, TARGET], CONFIG, ("config.init_from",)),
    "evaluate_no_run": ("evaluate", [*EVAL, TARGET, "--config.init_from={tmp}/nowhere"], CONFIG, ("nowhere",)),
    "evaluate_target": ("evaluate", [*EVAL, "--config.init_from={tmp}/other_run", "--config.data.targets=('Lupus',)"],
                        DATA, ("config.data.targets: ", "Lupus")),
    "evaluate_split_name": ("evaluate", [*EVAL, TARGET, "--config.init_from={tmp}/other_run",
                                         "--config.data.split=tset"], DATA, ("config.data.split: ", "'tset'")),
    "evaluate_later": ("evaluate", [*EVAL, TARGET, "--config.init_from={tmp}/other_run",
                                    "--config.subgroups.fields=('race',)"], CONFIG, ("config.subgroups.fields",)),
    "evaluate_tokens": ("evaluate", [*EVAL, TARGET, "--config.init_from={tmp}/other_run",
                                     "--config.probe.tokens=all"], CONFIG, ("tokens='all'", "cls_and_mean_patch")),
    "evaluate_ruined": ("evaluate", ["--config=configs/eval/knn.py", *EVAL[1:], TARGET,
                                     "--config.init_from={tmp}/other_run"],
                        ERROR, ("other_run, step 0", "no direction")),
    "evaluate_batch": ("evaluate", [*EVAL, TARGET, "--config.init_from={tmp}/other_run", "--config.batch_size=0"],
                       CONFIG, ("config.batch_size=0", "at least 1")),
    "evaluate_confidence": ("evaluate", [*EVAL, TARGET, "--config.init_from={tmp}/other_run",
                            "--config.bootstrap.confidence=2"], CONFIG, ("config.bootstrap.confidence=2", "between 0")),
    "evaluate_twice": ("evaluate", [*EVAL, "--config.init_from={tmp}/other_run",
                       "--config.data.targets=('sex:F','sex:F')"], CONFIG, ("config.data.targets", "once")),
    "evaluate_runs": ("evaluate", [*EVAL, TARGET, "--config.init_from={tmp}/other_run",
                      "--config.baselines.runs=('a',)"], CONFIG, ("config.baselines.runs", "linear_probe", "head")),
    "evaluate_study": ("evaluate", [*EVAL, TARGET, "--config.init_from={tmp}/other_run", "--config.study=mean"],
                       CONFIG, ("config.study='mean'", "none, average, concatenate")),
    "evaluate_pairs": ("evaluate", [*CACHED, "--config.study=concatenate"], DATA,
                       ("config.study='concatenate'", "no study")),
    "evaluate_probe_blocks": ("evaluate", [*EVAL, TARGET, "--config.init_from={tmp}/other_run",
                                           "--config.probe.blocks=3"], CONFIG, ("config.probe.blocks=3", "1 blocks")),
    "evaluate_head_blocks": ("evaluate", [*CACHED, "--config.head.blocks=4"], CONFIG,
                             ("config.head.blocks=4", "other_run has 1 blocks")),
    "evaluate_head_key": ("evaluate", [*CACHED, "--config.head.blocs=1"], CONFIG, ("config.head.blocks",)),
    "evaluate_tokens_kept": ("evaluate", [*CACHED, "--config.features.tokens=('patch',)"], CONFIG,
                             ("config.features.tokens=('patch',)", "mean_patch")),
    "evaluate_memory": ("evaluate", [*CACHED, "--config.features.max_gb=1e-9"], CONFIG,
                        ("config.features.max_gb=1e-09", "cxr_jax.train")),
    "evaluate_rates": ("evaluate", [*CACHED, "--config.training.learning_rates=()"], CONFIG,
                       ("config.training.learning_rates=()",)),
    "evaluate_list": ("evaluate", [*CACHED, "--config.data.only_images={tmp}/empty.py"], DATA,
                      ("config.data.only_images=", "none of its 0 image ids")),
    "evaluate_fraction": ("evaluate", ["--config=configs/eval/label_efficiency.py", *CACHED[1:],
                                       "--config.label_efficiency.fractions=(0.01,)",
                                       "--config.label_efficiency.shots=()"], CONFIG,
                          ("config.label_efficiency.fractions: 0.01 of the", "the least here is")),
    "evaluate_shots": ("evaluate", ["--config=configs/eval/label_efficiency.py", *CACHED[1:],
                                    "--config.label_efficiency.shots=(400,)"], CONFIG,
                       ("config.label_efficiency.shots: 400 patients are asked for",)),
    "init_from_dataset": ("train", [*RUN, "--config.init_from={data}"], CONFIG, ("is a dataset",)),
    "init_from_checkpoint": ("train", [*RUN, "--config.init_from={tmp}/other_run/checkpoints/0"], CONFIG,
                             ("other_run, and the step 0",)),
    "init_step_alone": ("train", [*RUN, "--config.init_step=7"], CONFIG, ("config.init_step=7", "config.init_from")),
    "schedules_alone": ("train", [*RUN, "--config.schedules_from=continue"], CONFIG, ("config.init_from",)),
    "learning_rate": ("train", [*RUN, "--config.optim.base_learning_rate=-1e-3"], CONFIG, ("base_learning_rate",)),
    "decay_pair": ("train", [*RUN, "--config.optim.weight_decay=(0.04,-0.2)"], CONFIG, ("config.optim.weight_decay",)),
    "batch_of_all": ("train", [*RUN, "--config.batch_size=4096"], CONFIG, ("config.batch_size=4096", "twice")),
    "global_size": ("train", [*RUN, "--config.crops.global_size=48"], CONFIG, ("global_size=48", "image_size=64")),
    "shared_heads": ("train", [*RUN, "--config.objective.shared_heads=True", "--config.heads.ibot_head.hidden=24"],
                     CONFIG, ("shared_heads=True", "config.heads.ibot_head")),
    "koleo_start": ("train", [*RUN, "--config.objective.koleo_start_spread=-1.0"], CONFIG, ("koleo_start_spread",)),
    "gram_refresh": ("train", [*RUN, "--config.objective.gram_refresh_every_steps=5"], CONFIG, ("gram_weight",)),

    "trackers": ("train", [*RUN, "--config.log.trackers=('comet',)"], CONFIG, ("trackers", "legal are wandb, mlflow")),
    "tracker_absent": ("train", [*RUN, "--config.log.trackers=('wandb',)"], CONFIG, ("wandb is not installed; pip",)),
    "probe_split": ("train", [*PROBE, "--config.probe.test_split=tset"], DATA, ("config.probe", "tset")),
    "probe_target": ("train", [*PROBE, "--config.probe.targets=('Lupus',)"], DATA, ("config.probe", "Lupus")),
    "probe_k": ("train", [*PROBE, "--config.probe.k=4000"], CONFIG, ("config.probe.k=4000",)),
    "plan_nothing": ("plan", SMOKE[:1], CONFIG, ("--topology",)),
    "plan_topology": ("plan", [*PLAN, "--topology=v5z:16x16"], CONFIG, ("--topology=v5z:16x16", "v5e:16x16", "h100")),
    "plan_shape": ("plan", [*PLAN, "--topology=cpu:2x4"], CONFIG, ("2x4", "number of fake devices")),
    "plan_output": ("plan", [*PLAN, "--topology=cpu:8", "--output=/nowhere/plan"], CONFIG, ("--output=/nowhere/plan",)),
    "plan_mesh": ("plan", [*PLAN, "--topology=cpu:8", "--config.mesh.replica=3"], CONFIG, ("replica=3", "1, 2, 4, 8")),
    "plan_batch": ("plan", [*PLAN, "--topology=cpu:8", "--config.batch_size=12"], CONFIG, ("multiple of 8", "8 and")),
    "plan_tensor": ("plan", [*PLAN, "--topology=cpu:8", "--config.mesh.tensor=4"], CONFIG,
                    ("config.mesh.tensor=4", "2 attention heads", "1, 2")),
    "plan_key": ("plan", [*PLAN, "--topology=cpu:8", "--config.batchsize=8"], CONFIG, ("config.batch_size",)),
    "plan_parts": ("plan", [*PLAN, "--topology=cpu:8", "--config.accumulate_steps=2"], CONFIG,
                   ("config.accumulate_steps=2", "1 groups")),
    "plan_dataset": ("plan", [*PLAN, "--topology=cpu:8", "--config.data.path={tmp}/nowhere"], DATA, ("nowhere",)),
    "tensor": ("train", [*RUN, "--config.mesh.tensor=4"], CONFIG, ("config.mesh.tensor=4", "2 attention heads")),
    "parts_koleo": ("train", [*RUN, "--config.mesh.fsdp=1", "--config.mesh.tensor=2", "--config.mesh.replica=4",
                              "--config.accumulate_steps=2", "--config.objective.koleo_scope=global"],
                    CONFIG, ("accumulate_steps=2", "koleo_scope='global'")),
    "attention": ("train", [*RUN, "--config.model.attention=magic"], CONFIG, ("attention='magic'", "cudnn")),
    "convert_nothing": ("convert", [], CONFIG, ("--input", "--output")),
    "convert_no_run": ("convert", ["--input={tmp}/nowhere", "--output={tmp}/out"], CONFIG, ("nowhere",)),
    "convert_flag": ("convert", ["--input={tmp}/other_run", "--output={tmp}/out", "--fromat=hf"], CONFIG, ("fromat",)),
}  # fmt: skip
# The storage library's own threads may complain on stderr before our line.
NOISY = ("checkpoint_cut",)


def write_other_run(workdir: Path) -> None:
    """A finished checkpoint of a narrower, shallower model, all zeros."""
    config = smoke.get_config()
    config.model.update(image_size=32, width=32, depth=1)
    config.crops.global_size = 32
    experiment = build(config)
    shapes = abstract_state(experiment.objective, experiment.tx, make_mesh(devices=jax.devices()[:1]))
    checkpoints = Checkpoints(workdir)
    meta = {
        **experiment.meta,
        "config": config.to_dict(),
        "geometry": {"fit": "pad", "image_size": 32, "mean": 0.5, "std": 0.25},
        "fingerprint": "",
        "vocabulary": [],
        "data_skip": 0,
    }
    checkpoints.save(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes), meta)
    checkpoints.close()


def write_damaged(dataset: Path, output: Path) -> None:
    """The dataset with every JPEG cut short, as a broken copy before the build would leave them."""
    manifest = read_manifest(dataset)
    serializer = features(len(manifest.vocabulary)).get_serialized_info
    builder = tfds.builder_from_directory(dataset)
    source = builder.as_data_source("train", decoders={"image": tfds.decode.SkipDecoding()})
    from tensorflow_datasets.core import example_serializer

    serializer = example_serializer.ExampleSerializer(serializer())
    with DatasetWriter(output, manifest.name, 1 << 28, overwrite=False) as writer:
        for record in source:
            record = {**record, "image": record["image"][:-300]}
            example = features(len(manifest.vocabulary)).encode_example(record)
            writer.add("train", serializer.get_tf_example(example).SerializeToString())
        writer.finish(dataclasses.replace(manifest, shards={}, fingerprint=""))


@pytest.fixture(scope="module")
def answers(phantom_dataset, tmp_path_factory) -> dict[str, dict]:
    tmp = tmp_path_factory.mktemp("cli")
    (tmp / "raises.py").write_text("def get_config():\n    return undefined_name\n")
    (tmp / "empty.py").write_text("")
    (tmp / "unfinished").mkdir()
    for file in phantom_dataset.iterdir():
        if file.name != "manifest.json":
            shutil.copy(file, tmp / "unfinished")
    write_other_run(tmp / "other_run")
    for folder in ("weights", "no_weights"):
        (tmp / folder).mkdir()
    write_hf(tmp / "weights", tiny_model(), random_backbone(tiny_model()))
    (tmp / "no_weights" / "config.json").write_text("{}")
    write_damaged(phantom_dataset, tmp / "damaged")
    for name in ("cut", "gone"):
        shutil.copytree(phantom_dataset, tmp / name)
        (shard,) = (tmp / name).glob("*train.array_record*")
        shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2]) if name == "cut" else shard.unlink()
    shutil.copytree(tmp / "other_run", tmp / "cut_run")
    for file in (tmp / "cut_run" / "checkpoints" / "0").glob("*/d/*"):
        file.write_bytes(file.read_bytes()[:100])
    shutil.copytree(tmp / "other_run", tmp / "half_run")
    shutil.rmtree(tmp / "half_run" / "checkpoints" / "0" / "targets")
    cases = [
        (f"cxr_jax.{entry}", [argument.format(tmp=tmp, data=phantom_dataset) for argument in arguments])
        for entry, arguments, _, _ in CASES.values()
    ]
    run = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "forked_entries.py")],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    return dict(zip(CASES, json.loads(run.stdout), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_one_line_and_an_exit_code(answers, name):
    _, _, code, words = CASES[name]
    answer = answers[name]
    assert answer["code"] == code, answer["stderr"]
    lines = answer["stderr"].strip().splitlines()
    if name in NOISY:
        lines = [line for line in lines if line.startswith("error: ")]
    (line,) = lines
    assert line.startswith("error: ")
    for word in words:
        assert word in line


def test_a_real_process_behaves_the_same(phantom_dataset, tmp_path):
    """Once without the fork: the exit code is the process's."""
    command = [sys.executable, "-m", "cxr_jax.train", "--config=configs/smoke.py", f"--workdir={tmp_path}"]
    run = subprocess.run([*command, "--config.batchsize=8"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert run.returncode == CONFIG
    assert run.stderr.startswith("error: config.batchsize is not a key") and run.stderr.count("\n") == 1
    assert not any(tmp_path.iterdir())

"""First guesses of keys, and where the things are set. Imports no torch."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterator, Sequence
from typing import Any

# Guesses -> patterns of the keys that set the thing (`group=`: the choice of an option), and a note where the value is
# of another kind. Patterns without a match in the config at hand are left out; without patterns the note is the answer.
GUESSES = {
    "lr learning_rate g_lr d_lr lr_g lr_d": ("model*.lr", "optim.lr_scale= multiplies the rates of all players"),
    "beta1 beta2 betas": ("model*.betas", "a list of two numbers"),
    "weight_decay momentum eps amsgrad": ("model*optimizer", "the optimizer's arguments, added as +KEY.NAME=VALUE"),
    "optimizer opt optim.name": ("model*optimizer._target_", "the name of a class, torch.optim.SGD"),
    "scheduler lr_scheduler lr_schedule schedule": ("scheduler= model*scheduler", "the course of the learning rate"),
    "batch_size batchsize bs batch": ("data.batch_size", ""),
    "epochs epoch max_epochs num_epochs n_epochs min_epochs": (
        "trainer.max_steps",
        "iterations: epochs are not counted",
    ),
    "max_steps steps iterations iters num_steps n_steps n_iter max_iter total_steps min_steps": (
        "trainer.max_steps",
        "",
    ),
    "device gpu cuda cpu use_cuda use_gpu accelerator": ("trainer=", "auto, cpu, gpu or ddp"),
    "gpus devices num_gpus n_gpus ngpu num_devices": ("trainer.devices", ""),
    "ddp distributed strategy": ("trainer= trainer.strategy", "trainer=ddp trains on several devices"),
    "precision amp fp16 bf16 mixed_precision dtype": ("speed.precision", "float32, bfloat16, float16 or float64"),
    "name run_name exp_name output_dir outdir out_dir out output save_dir log_dir logdir run_dir default_root_dir": (
        "hydra.run.dir",
        "the folder of the run",
    ),
    "ckpt_path ckpt checkpoint_path resume_from resume_from_checkpoint restore load_from": (
        "",
        "Two keys name a run: resume=RUN goes on with it, init_from=RUN starts a new one from its weights.",
    ),
    "pretrained weights": ("init_from", "a run whose weights are the first ones"),
    "latent_dim z_dim zdim nz latent_size noise_dim latent": ("model.latent_dim", ""),
    "image_size img_size imsize size resolution": ("data.image_size", ""),
    "channels nc in_channels img_channels": ("data.channels", ""),
    "num_workers workers n_workers": ("data.num_workers", ""),
    "dataset data_set data_name": ("data=", "--list data shows the data sets"),
    "data_dir data_root data_path dataroot datadir root": ("data.root", ""),
    "limit_train_batches overfit_batches fast_dev_run": ("data.limit_train trainer.max_steps", "samples; iterations"),
    "arch architecture method model_name": ("model= network=", "--list models shows the methods"),
    "width ngf ndf nf base_channels": ("network.width network.hidden", "channels or widths of the layers"),
    "hidden hidden_dim hidden_size hidden_dims": (
        "network.hidden network.*.hidden network.width",
        "widths of the layers",
    ),
    "beta kl_weight": ("model.kl_weight model.beta", ""),
    "clip grad_clip clip_grad gradient_clip gradient_clip_val gradient_clip_algorithm max_grad_norm clip_norm": (
        "optim.clip",
        "the largest gradient norm of each player",
    ),
    "accumulate_grad_batches grad_accum accumulation_steps gradient_accumulation_steps": (
        "optim.accumulate",
        "batches per update",
    ),
    "ema ema_decay": ("ema.decay", "0 for no average"),
    "random_seed manual_seed rng_seed": ("seed", ""),
    "num_threads n_threads cores": ("threads", ""),
    "time max_minutes max_hours timeout max_time": ("max_time", "written HH:MM:SS"),
    "log_every log_interval log_freq print_every print_freq": ("trainer.log_every_n_steps", ""),
    "save_every save_interval save_freq every_n_train_steps": ("checkpoint.every_n_steps", ""),
    "save_top_k keep_last enable_checkpointing": ("checkpoint.keep", "a number of checkpoints"),
    "sample_every sample_interval": ("callbacks.grid.every_n_steps", ""),
    "eval_every eval_interval val_check_interval check_val_every_n_epoch limit_val_batches": (
        "metrics.every_n_steps",
        "iterations between scores",
    ),
    "early_stopping patience": ("checkpoint.early_stop*", "scores without progress before the end"),
    "wandb tensorboard mlflow comet use_wandb logging": (
        "logger=",
        "logger=default writes TensorBoard and metrics.csv, logger=csv the latter",
    ),
    "tags tag notes note project group comment description": ("hydra.run.dir", "a run is named by its folder alone"),
    "profiler profile": ("", "--dry-run and scripts/benchmark.py measure the speed."),
    "enable_progress_bar progress_bar verbose": ("", "~callbacks.progress leaves the progress bar out."),
    "enable_model_summary summary debug dry": ("", "--dry-run describes a run, its size and duration."),
    "plugins": ("speed.precision", "Lightning's other plugins have no place"),
    "config config_file cfg": ("experiment=", "--config-dir FOLDER adds files of your own"),
    "conditional cond class_cond": ("model= conditioning=", "model=cgan and model=cvae are given labels"),
}
PLACES = {name: place for names, place in GUESSES.items() for name in names.split()}


def cure(key: str, value: str, keys: Sequence[str], groups: Sequence[str]) -> str:
    """A sentence with the keys that an unread one may mean; "" if none is known.

    Args:
        key: With dots, as typed: "lr", "trainer.max_epochs".
        value: As typed.
        keys: All keys of the config at hand, with dots.
        groups: Its groups.
    """
    last = last_of(key)
    patterns, note = PLACES.get(key) or PLACES.get(last) or (f"{last} *.{last}", "")
    if not patterns:
        return note
    places = [place for pattern in patterns.split() for place in _matches(pattern, keys, groups) if place != key]
    if places and note:
        return f"It is set by {' or '.join(f'{place}=' for place in places[:4])} ({note})."
    if places:
        return f"Try {' '.join(f'{place}={value}' for place in places[:4])}."
    keys = [k for k in keys if k != key and not k.startswith(f"{key}.")]
    keys = [k for k in keys if not last_of(k).startswith("_")]
    near = difflib.get_close_matches(key, [*keys, *(g for g in groups if g != key)], n=1, cutoff=0.75)
    if not near:
        ends = difflib.get_close_matches(last, sorted({last_of(k) for k in keys}), n=1, cutoff=0.8)
        near = [k for k in keys if ends and last_of(k) == ends[0] and k != key][:1]
    near = [k for k in near if not key.startswith(f"{k}.")]
    return f"Did you mean {near[0]}={value}?" if near else ""


def last_of(key: str) -> str:
    """The part of a dotted key behind its last dot."""
    return key.rpartition(".")[2]


def dotted(node: Any, path: str = "") -> Iterator[str]:
    """All keys of plain containers, nodes and leaves, with dots between them."""
    for key, value in node.items() if isinstance(node, dict) else ():
        yield f"{path}{key}"
        yield from dotted(value, f"{path}{key}.")


def _matches(pattern: str, keys: Sequence[str], groups: Sequence[str]) -> list[str]:
    if pattern.endswith("="):
        return [pattern[:-1]] if pattern[:-1] in groups else []
    return [key for key in keys if fnmatch.fnmatchcase(key, pattern)]

"""The LightningModule, and the function that trains a configuration."""

from collections.abc import Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from quintet.errors import InputError
from quintet.fusion.data.prepared import UNLABELLED, Prepared
from quintet.fusion.metrics import auc_or_concordance
from quintet.fusion.model.augmentation import Augmentation
from quintet.fusion.model.datasets import Patients, Tokens
from quintet.fusion.model.frozen import fit_tokens, freeze_encoders, with_all_modalities
from quintet.fusion.model.losses import contrastive_loss, prediction_loss
from quintet.fusion.model.methods import DiffusionNoise
from quintet.fusion.model.networks import FusionNet
from quintet.fusion.model.noise import shared_noise
from quintet.params import Compute, FusionConfig
from quintet.params.fusion import IMPUTES, LATE, FusionTraining
from quintet.runs import Record
from quintet.training.batches import batch_loader, gather_rows
from quintet.training.fit import Monitor, adam_optimizer, cosine_with_warmup, fit, set_threads_and_seed, with_step_schedule
from quintet.training.models import TrainedModel

PERFECT_SCORE = 0.9999
SHARPNESS = np.geomspace(0.4, 4.0, 47).tolist()  # 5 % apart
CALIBRATION_DRAWS = 16
MIN_COMPLETE = 8  # training patients with every modality
COLLAPSED = 0.05  # a smaller variance of the fused target between patients (at most 1 if it is normalised) causes a warning


def mask_modalities(present: Tensor, share: float) -> Tensor:
    """`present` `[B, K]` with a random share of the modalities masked, but never a patient's last one."""
    kept = present & (torch.rand(present.shape, device=present.device) >= share)
    spared = torch.where(present, torch.rand(present.shape, device=present.device), -1).argmax(1)
    kept[torch.arange(len(kept)), spared] |= ~kept.any(1)
    return kept


def tokens_of(net: FusionNet, batch: dict[str, Any]) -> Tensor:
    """The tokens `[B, K, D]` of a batch of either kind."""
    if "tokens" in batch:
        tokens: Tensor = batch["tokens"]
        return tokens
    return net.tokens(net.encoders.features(batch["volumes"], batch["vectors"], batch["present"]), batch["present"])


def draw_scores(net: FusionNet, tokens: Tensor, batch: dict[str, Any], draws: int, training: FusionTraining) -> Tensor:
    """Scores `[N, B, outputs]` of all modalities that the patients have."""
    noise = shared_noise(draws, net.noise_size).expand(len(tokens), -1, -1).to(tokens)
    steps = training.sampling_steps if net.method == "diffusion" else training.flow.steps
    return net(tokens, batch["present"], noise, steps=steps).float()


class FusionModule(L.LightningModule):
    validation_output: Tensor

    def __init__(
        self, net: FusionNet, config: FusionConfig, training: FusionTraining, data: Prepared, *, debug: bool = False
    ) -> None:
        super().__init__()
        self.net, self.config, self.training_params = net, config, training
        images = config.encoders == "trained" and bool(data.preparation.modalities)
        self.augment = Augmentation(training.augment) if images and not debug else None
        self.valid = data.rows("valid")
        self.target = torch.from_numpy(data.target)
        self.teacher: AveragedModel | None = None
        if config.method == "diffusion" and training.diffusion.target == "teacher":
            self.teacher = AveragedModel(net.encoders, multi_avg_fn=get_ema_multi_avg_fn(training.diffusion.teacher_decay))
            self.teacher.eval()  # targets without dropout
        # scores and fused target of each patient, filled by validation
        size = net.outputs + (training.hidden if config.method == "diffusion" else net.outputs)
        self.register_buffer("validation_output", torch.zeros(len(data.table), size), persistent=False)

    def losses(self, batch: dict[str, Any], kept: Tensor) -> dict[str, Tensor]:
        """Each term of the loss, unweighted; `kept` `[B, K]`: the present modalities that are not masked."""
        net, training, present, target = self.net, self.training_params, batch["present"], batch["target"]
        if "tokens" in batch:
            start = torch.randn(len(kept), 1, net.noise_size, device=kept.device)
            scores = net(batch["tokens"], kept, start, steps=training.flow.steps)[0]
            loss = prediction_loss(scores, target, survival_loss=training.survival_loss)
            if net.method == "shaspec":
                loss = loss + net.fuse.auxiliary(batch["tokens"], kept)
            return {"prediction": loss}
        features = net.encoders.features(batch["volumes"], batch["vectors"], present)
        tokens = net.tokens(features, present)
        if net.method == LATE:
            scores = net.per_modality_scores(tokens)
            losses = [
                prediction_loss(scores[rows, k], target[rows], survival_loss=training.survival_loss)
                for k in range(scores.shape[1])
                if (rows := kept[:, k]).any()
            ]
            return {"prediction": torch.stack(losses).mean()}
        if net.method == "concat":
            return {"prediction": prediction_loss(net(tokens, kept)[0], target, survival_loss=training.survival_loss)}
        x0, noise = tokens[:, 0], DiffusionNoise(torch.zeros(0), torch.zeros(0))
        if net.method == "diffusion":
            x0 = net.fuse.target(self._target_tokens(batch, tokens), present)
            time = torch.randint(training.diffusion.steps, (len(x0),), device=x0.device)
            noise = DiffusionNoise(time, torch.randn(x0.shape, device=x0.device))
        output = net.training_output(features, tokens, present, kept, x0, noise)
        return {
            "prediction": prediction_loss(net.scores(output.fused), target, survival_loss=training.survival_loss),
            "diffusion": output.diffusion_loss,
            "reconstruction": output.reconstruction_loss,
            "contrastive": contrastive_loss(tokens, present, temperature=training.temperature),
        }

    def _target_tokens(self, batch: dict[str, Any], tokens: Tensor) -> Tensor:
        """The tokens whose mean is the diffusion's target: the network's own, or those of its moving average."""
        if self.teacher is None:
            return tokens
        with torch.no_grad():
            teacher: Any = self.teacher.module
            return teacher.tokens(teacher.features(batch["volumes"], batch["vectors"], batch["present"]), batch["present"])

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.last_batch = batch
        if self.augment:
            batch = batch | {"volumes": self.augment(batch["volumes"])}
        terms = self.losses(batch, mask_modalities(batch["present"], self.config.modality_dropout))
        loss = self.weighted(terms)
        logged = terms if len(terms) > 1 else {}
        self.log_dict(
            {"train_loss": loss, **{f"train_{name}": value for name, value in logged.items()}},
            on_step=False,
            on_epoch=True,
            batch_size=len(batch["rows"]),
        )
        return loss

    def weighted(self, terms: dict[str, Tensor]) -> Tensor:
        weights = self.training_params.loss_weights
        return torch.stack([getattr(weights, name) * value for name, value in terms.items()]).sum()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.teacher is not None:
            self.teacher.update_parameters(self.net.encoders)

    def on_validation_epoch_start(self) -> None:
        self.validation_output.zero_()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        net, tokens = self.net, tokens_of(self.net, batch)
        scores = draw_scores(net, tokens, batch, 1, self.training_params)[0]
        x0 = net.fuse.target(tokens, batch["present"]).float() if net.method == "diffusion" else scores
        self.validation_output[batch["rows"]] = torch.cat([scores, x0], 1)

    def on_validation_epoch_end(self) -> None:
        """Loss and AUC or concordance index of the validation patients, from all their modalities; for diffusion also the
        variance of its targets, which is 0 if they have collapsed to a single point."""
        output = gather_rows(self, self.validation_output)[self.valid].cpu()
        training = self.training_params
        if not torch.isfinite(output).all():
            raise InputError(f"training diverged in epoch {self.current_epoch + 1}; lower fusion.training.rate ({training.rate})")
        scores, fused = output[:, : self.net.outputs], output[:, self.net.outputs :]
        target = self.target[self.valid]
        values = {
            "valid_loss": prediction_loss(scores, target, survival_loss=training.survival_loss).item(),
            "valid_score": auc_or_concordance(scores.numpy(), target.numpy()),
        }
        if self.net.method == "diffusion":
            variance = values["valid_feature_variance"] = fused.var(0, correction=0).mean().item()
            if variance < COLLAPSED and self.current_epoch + 1 == self.trainer.max_epochs:
                print(f"warning: the fused vectors of different patients are almost equal (variance {variance:.2g})")
        self.log_dict(values)

    def configure_optimizers(self) -> Any:
        steps = int(self.trainer.estimated_stepping_batches)
        trainable = [p for p in self.net.parameters() if p.requires_grad]
        groups = [{"params": trainable, "lr": self.training_params.rate}]
        optimizer = adam_optimizer(groups, self.training_params, decoupled=True)
        return with_step_schedule(optimizer, cosine_with_warmup(optimizer, self.training_params, steps))


def train(data: Prepared, config: FusionConfig, training: FusionTraining, compute: Compute, *, record: Record) -> TrainedModel:
    """Train one configuration; the record gets the final metrics, the segmenter and where the encoders come from."""
    set_threads_and_seed(compute, record.seed)
    start = config.start(record.seed)
    if start:
        training = training.on_tokens()
    rows = data.rows("train")
    if config.patients == "complete":
        rows = with_all_modalities(data, rows)
        if len(rows) < MIN_COMPLETE:
            raise InputError(f"patients=complete: {len(rows)} training patients have every modality; use patients: all")
    about = {
        "modalities": data.modalities,
        "classes": data.classes,
        "clinical_encoder": data.encoder.to_dicts(),
        "vector_encoders": {name: encoder.to_dict() for name, encoder in data.vector_encoders.items()},
        "prepared": data.preparation.to_dict(),
        "sampling_steps": training.flow.steps if start else training.sampling_steps,
    }
    build = network_values(data, config, training)
    record.tags |= {"segmenter": data.preparation.segmenter, "encoders": str(start or "own")}
    net, patients = FusionNet(**build), Patients(data)
    batches: Dataset[Any] = patients
    if start:
        freeze_encoders(net, start, about)
        unlabelled = data.rows(UNLABELLED)
        learning = [rows, unlabelled if config.patients == "all" else with_all_modalities(data, unlabelled)]
        tokens = fit_tokens(net, patients, np.sort(np.concatenate(learning)))
        if config.method in IMPUTES:
            net.fuse.calibrate(tokens[data.rows("valid")], patients.present[data.rows("valid")], steps=training.flow.steps)
            record.tags["spread"] = f"{float(net.fuse.spread):.3g}"
        batches = Tokens(tokens, patients)
    valid: DataLoader[Any] = batch_loader(batches, data.rows("valid"), training.batch_size, seed=record.seed, shuffle=False)
    fitted = fit(
        FusionModule(net, config, training, data, debug=compute.debug),
        batch_loader(batches, rows, training.batch_size, seed=record.seed, shuffle=True),
        valid,
        epochs=training.epochs,
        seed=record.seed,
        training=training,
        compute=compute,
        record=record,
        monitor=Monitor("valid_score", lower_is_better=False, perfect=PERFECT_SCORE, keep="last", patience=training.patience),
    )
    net.cpu().load_state_dict(fitted.state)
    net.eval()

    def read(chosen: list[int]) -> list[dict[str, Any]]:  # not from the loaders, which under DDP have a share
        return [batches[chosen[i : i + training.batch_size]] for i in range(0, len(chosen), training.batch_size)]

    if config.method == LATE:
        net.base.copy_(_scores_without_evidence(net, read(rows.tolist())))
    if data.classes:
        record.tags["sharpness"] = f"{_calibrate(net, read(data.rows('valid').tolist()), training):.3g}"
    return TrainedModel({"model": net.state_dict()}, build | {"about": about}, {"history": fitted.history})


def network_values(data: Prepared, config: FusionConfig, training: FusionTraining) -> dict[str, Any]:
    """The arguments of a configuration's FusionNet."""
    images = data.preparation.modalities
    return {
        **training.model_dump(include={"hidden", "heads", "predictor_units", "dropout", "recompute"}),
        "diffusion": training.diffusion.model_dump(include={"steps", "schedule", "predicts", "layers", "target"}),
        "flow": training.flow.model_dump(exclude={"steps"}),
        "method": config.method,
        "images": [
            training.encoder_of(name, "encoder", "width") | {"channels": data.preparation.channels_of(name)} for name in images
        ],
        "vectors": [
            [v.shape[1], *training.encoder_of(name, "clinical_units")["clinical_units"]]
            for name, v in zip(data.modalities[len(images) :], data.vectors, strict=True)
        ],
        "outputs": len(data.classes) or 1,
        "token_size": training.tokens.size if config.encoders == "frozen" else 0,
    }


@torch.no_grad()
def _scores_without_evidence(net: FusionNet, batches: Sequence[dict[str, Any]]) -> Tensor:
    """Late fusion: the log shares of the classes, or the mean log hazard of each modality, among these patients; `[K,
    outputs]`."""
    if net.outputs > 1:
        classes = torch.cat([b["target"] for b in batches])[:, 0].long()
        return torch.bincount(classes, minlength=net.outputs).clamp_min(1).div(len(classes)).log().expand_as(net.base)
    scores = torch.cat([net.per_modality_scores(tokens_of(net, b)) for b in batches])
    present = torch.cat([b["present"] for b in batches])[..., None]
    return (scores * present).sum(0) / present.sum(0).clamp_min(1)


@torch.inference_mode()
def _calibrate(net: FusionNet, batches: Sequence[dict[str, Any]], training: FusionTraining) -> float:
    """Set the factor of the log odds that has the lowest log loss on validation patients (temperature scaling, Guo et al. 2017,
    arXiv 1706.04599), and return it."""
    scores = torch.cat([draw_scores(net, tokens_of(net, b), b, CALIBRATION_DRAWS, training) for b in batches], 1)
    target = torch.cat([b["target"] for b in batches])[:, 0].long()

    def log_loss(factor: float) -> float:
        return F.nll_loss((factor * scores).softmax(-1).mean(0).clamp_min(1e-6).log(), target).item()

    best = min(SHARPNESS, key=log_loss)
    net.sharpness.fill_(best)
    return float(best)

"""The LightningModule, and the function that trains a configuration."""

from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from quintet.errors import InputError
from quintet.fusion.data.prepared import Prepared
from quintet.fusion.metrics import auc_or_concordance
from quintet.fusion.model.augmentation import Augmentation
from quintet.fusion.model.losses import contrastive_loss, prediction_loss
from quintet.fusion.model.methods import DiffusionNoise
from quintet.fusion.model.networks import FusionNet, initial_noise
from quintet.params import Compute, FusionConfig
from quintet.params.fusion import ADAPTS, FusionTraining
from quintet.runs import Record
from quintet.training.batches import batch_loader, gather_rows
from quintet.training.fit import Monitor, adam_optimizer, cosine_with_warmup, fit, set_threads_and_seed, with_step_schedule
from quintet.training.models import TrainedModel

PERFECT_SCORE = 0.9999
MAX_BANK = 256  # training patients whose tokens are kept for test-time training
COLLAPSED = 0.05  # a smaller variance of the fused target between patients (at most 1 if it is normalised) causes a warning


class Patients(Dataset[dict[str, Any]]):
    """Batches of patients, requested by lists of rows; volumes are read from the memory-mapped file."""

    def __init__(self, data: Prepared) -> None:
        self.volumes, self.names = data.volumes, data.table["patient"].tolist()
        self.vectors, self.present = [torch.from_numpy(v) for v in data.vectors], torch.from_numpy(data.present)
        self.target = torch.from_numpy(data.target)

    def __getitem__(self, rows: list[int]) -> dict[str, Any]:
        volumes = torch.from_numpy(np.stack([self.volumes[row] for row in rows])).float()
        return {
            "volumes": volumes,
            "vectors": [v[rows] for v in self.vectors],
            "present": self.present[rows],
            "target": self.target[rows],
            "rows": torch.tensor(rows),
            "case": [self.names[row] for row in rows],
        }


def mask_modalities(present: Tensor, share: float) -> Tensor:
    """`present` `[B, K]` with a random share of the modalities masked, but never a patient's last one."""
    kept = present & (torch.rand(present.shape, device=present.device) >= share)
    spared = torch.where(present, torch.rand(present.shape, device=present.device), -1).argmax(1)
    kept[torch.arange(len(kept)), spared] |= ~kept.any(1)
    return kept


class FusionModule(L.LightningModule):
    validation_output: Tensor

    def __init__(
        self, net: FusionNet, config: FusionConfig, training: FusionTraining, data: Prepared, *, debug: bool = False
    ) -> None:
        super().__init__()
        self.net, self.config, self.training_params = net, config, training
        self.augment = None if debug or not data.preparation.modalities else Augmentation(training.augment)
        self.valid = data.rows("valid")
        self.target = torch.from_numpy(data.target)
        self.teacher: AveragedModel | None = None
        if config.method == "diffusion" and training.diffusion.target == "teacher":
            self.teacher = AveragedModel(net.encoders, multi_avg_fn=get_ema_multi_avg_fn(training.diffusion.teacher_decay))
        # scores and fused target of each patient, filled by validation
        size = net.outputs + training.hidden
        self.register_buffer("validation_output", torch.zeros(len(data.table), size), persistent=False)

    def losses(self, batch: dict[str, Any], kept: Tensor) -> dict[str, Tensor]:
        """Each term of the loss, unweighted; `kept` `[B, K]`: the present modalities that are not masked."""
        net, training, present, target = self.net, self.training_params, batch["present"], batch["target"]
        features = net.encoders.features(batch["volumes"], batch["vectors"], present)
        tokens = net.encoders.tokens(features, present)
        if net.method == "late":
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
        weights = self.training_params.loss_weights
        loss = torch.stack([getattr(weights, name) * value for name, value in terms.items()]).sum()
        logged = terms if len(terms) > 1 else {}
        self.log_dict(
            {"train_loss": loss, **{f"train_{name}": value for name, value in logged.items()}},
            on_step=False,
            on_epoch=True,
            batch_size=len(batch["rows"]),
        )
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.teacher is not None:
            self.teacher.update_parameters(self.net.encoders)

    def on_validation_epoch_start(self) -> None:
        self.validation_output.zero_()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        net, present = self.net, batch["present"]
        tokens = net.encoders.tokens(net.encoders.features(batch["volumes"], batch["vectors"], present), present)
        noise = initial_noise(batch["case"], 1, self.training_params.hidden).to(tokens)
        scores = net(tokens, present, noise, steps=self.training_params.sampling_steps)[0]
        x0 = net.fuse.target(tokens, present) if net.method == "diffusion" else tokens.mean(1)
        self.validation_output[batch["rows"]] = torch.cat([scores.float(), x0.float()], 1)

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
        groups = [{"params": list(self.net.parameters()), "lr": self.training_params.rate}]
        optimizer = adam_optimizer(groups, self.training_params, decoupled=True)
        return with_step_schedule(optimizer, cosine_with_warmup(optimizer, self.training_params, steps))


def train(data: Prepared, config: FusionConfig, training: FusionTraining, compute: Compute, *, record: Record) -> TrainedModel:
    """Train one configuration; the record gets the final metrics and the segmenter."""
    set_threads_and_seed(compute, record.seed)
    rows = data.rows("train")
    build = {
        **training.model_dump(
            include={"encoder", "width", "clinical_units", "hidden", "heads", "predictor_units", "dropout", "recompute"}
        ),
        "diffusion": training.diffusion.model_dump(include={"steps", "schedule", "predicts", "layers", "target"}),
        "method": config.method,
        "images": len(data.preparation.modalities),
        "vectors": [v.shape[1] for v in data.vectors],
        "outputs": len(data.classes) or 1,
        "bank": min(MAX_BANK, len(rows)) if config.method in ADAPTS else 0,
    }
    record.tags["segmenter"] = data.preparation.segmenter
    net = FusionNet(**build)
    patients = Patients(data)
    valid: DataLoader[Any] = batch_loader(patients, data.rows("valid"), training.batch_size, seed=record.seed, shuffle=False)
    fitted = fit(
        FusionModule(net, config, training, data, debug=compute.debug),
        batch_loader(patients, rows, training.batch_size, seed=record.seed, shuffle=True),
        valid,
        epochs=training.epochs,
        seed=record.seed,
        training=training,
        compute=compute,
        record=record,
        monitor=Monitor("valid_score", lower_is_better=False, perfect=PERFECT_SCORE, keep="best", patience=training.patience),
    )
    net.cpu().load_state_dict(fitted.state)
    chosen = np.random.default_rng(record.seed).permutation(rows)[: build["bank"]]
    if len(chosen):
        _fill_bank(net.eval(), patients, np.sort(chosen), training.batch_size)
    about = {
        "modalities": data.modalities,
        "classes": data.classes,
        "clinical_encoder": data.encoder.to_dicts(),
        "vector_encoders": {name: encoder.to_dict() for name, encoder in data.vector_encoders.items()},
        "prepared": data.preparation.to_dict(),
        "sampling_steps": training.sampling_steps,
        "temperature": training.temperature,
        "loss_weights": training.loss_weights.model_dump(),
    }
    return TrainedModel({"model": net.state_dict()}, build | {"about": about}, {"history": fitted.history})


@torch.inference_mode()
def _fill_bank(net: FusionNet, patients: Patients, rows: NDArray[np.int64], batch_size: int) -> None:
    for start in range(0, len(rows), batch_size):
        batch = patients[rows[start : start + batch_size].tolist()]
        features = net.encoders.features(batch["volumes"], batch["vectors"], batch["present"])
        net.bank[start : start + batch_size] = net.encoders.tokens(features, batch["present"])
        net.known[start : start + batch_size] = batch["present"]

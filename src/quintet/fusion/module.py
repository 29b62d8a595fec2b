"""The LightningModule, and one call that trains a configuration into a run folder."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from quintet.errors import InputError
from quintet.files import atomic_folder
from quintet.fusion.augmentation import Augmentation
from quintet.fusion.data import Prepared
from quintet.fusion.evaluation import headline
from quintet.fusion.losses import contrastive_loss, prediction_loss
from quintet.fusion.networks import Draw, FusionNet, noise_for
from quintet.params import Compute, Fusion, FusionConfig
from quintet.params.fusion import ADAPTS
from quintet.runs import Record
from quintet.training.batches import batch_loader, gather_rows
from quintet.training.fit import Monitor, adam_optimizer, cosine_with_warmup, fit, set_threads_and_seed, with_step_schedule
from quintet.training.models import save_model

PERFECT = 0.9999
BANK = 256  # training patients whose tokens are kept for test-time training
COLLAPSED = 0.05  # variance of the fused target between patients (1 at most, where it is normalised) that is warned of


class Patients(Dataset[dict[str, Any]]):
    """Batches of patients, asked for by lists of rows of the memory-mapped volumes."""

    def __init__(self, data: Prepared) -> None:
        self.volumes, self.names = data.volumes, data.table["patient"].tolist()
        self.clinical, self.present = torch.from_numpy(data.clinical), torch.from_numpy(data.present)
        self.target = torch.from_numpy(data.target)

    def __getitem__(self, rows: list[int]) -> dict[str, Any]:
        volumes = torch.from_numpy(np.stack([self.volumes[row] for row in rows])).float()
        return {
            "volumes": volumes,
            "clinical": self.clinical[rows],
            "present": self.present[rows],
            "target": self.target[rows],
            "rows": torch.tensor(rows),
            "case": [self.names[row] for row in rows],
        }


def withhold(present: Tensor, share: float) -> Tensor:
    """`present` `[B, K]` with a share of the modalities taken away by chance, never the last one."""
    kept = present & (torch.rand(present.shape, device=present.device) >= share)
    lucky = torch.where(present, torch.rand(present.shape, device=present.device), -1).argmax(1)
    kept[torch.arange(len(kept)), lucky] |= ~kept.any(1)
    return kept


class FusionModule(L.LightningModule):
    seen: Tensor

    def __init__(
        self, net: FusionNet, config: FusionConfig, shared: Fusion, data: Prepared, *, steps: int, debug: bool = False
    ) -> None:
        super().__init__()
        self.net, self.config, self.shared, self.steps = net, config, shared, steps
        self.augment = None if debug else Augmentation(shared.augment)
        self.valid = data.rows("valid")
        self.target, self.classes = torch.from_numpy(data.target), data.classes
        self.names = data.table["patient"].tolist()
        self.teacher: AveragedModel | None = None
        if config.method == "diffusion" and shared.diffusion.target == "teacher":
            self.teacher = AveragedModel(net.encoders, multi_avg_fn=get_ema_multi_avg_fn(shared.diffusion.teacher_decay))
        # scores and fused target of each patient, filled by validation
        self.register_buffer("seen", torch.zeros(len(data.table), net.outputs + shared.hidden), persistent=False)

    def losses(self, batch: dict[str, Any], kept: Tensor) -> dict[str, Tensor]:
        """Each term of the loss, unweighted; `kept`: what the network sees of what is there."""
        net, present, target = self.net, batch["present"], batch["target"]
        features = net.encoders.features(batch["volumes"], batch["clinical"], present)
        tokens = net.encoders.tokens(features, present)
        if net.method == "late":
            said = net.alone(tokens)
            each = [
                prediction_loss(said[own, k], target[own], survival_loss=self.shared.survival_loss)
                for k in range(said.shape[1])
                if (own := kept[:, k]).any()
            ]
            return {"prediction": torch.stack(each).mean()}
        if net.method == "concat":
            return {"prediction": prediction_loss(net(tokens, kept)[0], target, survival_loss=self.shared.survival_loss)}
        x0, draw = tokens[:, 0], Draw(torch.zeros(0), torch.zeros(0))
        if net.method == "diffusion":
            x0 = net.fuse.target(*self._teacher(batch, tokens))
            time = torch.randint(self.shared.diffusion.steps, (len(x0),), device=x0.device)
            draw = Draw(time, torch.randn(x0.shape, device=x0.device))
        learnt = net.learn(features, tokens, present, kept, x0, draw)
        return {
            "prediction": prediction_loss(net.scores(learnt.fused), target, survival_loss=self.shared.survival_loss),
            "diffusion": learnt.diffusion,
            "reconstruction": learnt.reconstruction,
            "contrastive": contrastive_loss(tokens, present, temperature=self.shared.temperature),
        }

    def _teacher(self, batch: dict[str, Any], tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens that the target is the mean of: the network's own, or those of its moving average."""
        present = batch["present"]
        if self.teacher is None:
            return tokens, present
        with torch.no_grad():
            slow: Any = self.teacher.module
            return slow.tokens(slow.features(batch["volumes"], batch["clinical"], present), present), present

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.last_batch = batch
        if self.augment:
            batch = batch | {"volumes": self.augment(batch["volumes"])}
        parts = self.losses(batch, withhold(batch["present"], self.config.dropping))
        loss = torch.stack([getattr(self.shared.loss_weights, name) * value for name, value in parts.items()]).sum()
        shown = parts if len(parts) > 1 else {}
        self.log_dict(
            {"train_loss": loss, **{f"train_{name}": value for name, value in shown.items()}},
            on_step=False,
            on_epoch=True,
            batch_size=len(batch["rows"]),
        )
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.teacher is not None:
            self.teacher.update_parameters(self.net.encoders)

    def on_validation_epoch_start(self) -> None:
        self.seen.zero_()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        net, present = self.net, batch["present"]
        tokens = net.encoders.tokens(net.encoders.features(batch["volumes"], batch["clinical"], present), present)
        noise = noise_for(batch["case"], 1, self.shared.hidden).to(tokens)
        scores = net(tokens, present, noise, steps=self.shared.sampling_steps)[0]
        x0 = net.fuse.target(tokens, present) if net.method == "diffusion" else tokens.mean(1)
        self.seen[batch["rows"]] = torch.cat([scores.float(), x0.float()], 1)

    def on_validation_epoch_end(self) -> None:
        """With everything that each validation patient has: loss, AUC or concordance; for diffusion also how far its targets
        are from being one point."""
        seen = gather_rows(self, self.seen)[self.valid].cpu()
        if not torch.isfinite(seen).all():
            raise InputError(f"training diverged in epoch {self.current_epoch + 1}; lower fusion.rate ({self.shared.rate})")
        scores, fused = seen[:, : self.net.outputs], seen[:, self.net.outputs :]
        target = self.target[self.valid]
        values = {
            "valid_loss": prediction_loss(scores, target, survival_loss=self.shared.survival_loss).item(),
            "valid_score": headline(scores.numpy(), target.numpy()),
        }
        if self.net.method == "diffusion":
            variance = values["valid_feature_variance"] = fused.var(0, correction=0).mean().item()
            if variance < COLLAPSED and self.current_epoch + 1 == self.trainer.max_epochs:
                print(f"warning: fused vectors of different patients are nearly one point (variance {variance:.2g})")
        self.log_dict(values)

    def configure_optimizers(self) -> Any:
        optimizer = adam_optimizer([{"params": list(self.net.parameters()), "lr": self.shared.rate}], self.shared, decoupled=True)
        return with_step_schedule(optimizer, cosine_with_warmup(optimizer, self.shared, self.steps))


def train(data: Prepared, out: Path, config: FusionConfig, shared: Fusion, compute: Compute, *, record: Record) -> Record:
    """Train one configuration and write `out` = {model.pt (best), history.csv}; returns the record with the final metrics."""
    set_threads_and_seed(compute, record.seed)
    rows = data.rows("train")
    build = {
        **shared.model_dump(
            include={"encoder", "width", "clinical_units", "hidden", "heads", "predictor_units", "dropout", "recompute"}
        ),
        "diffusion": shared.diffusion.model_dump(include={"steps", "schedule", "predicts", "layers", "target"}),
        "method": config.method,
        "images": len(data.modalities) - 1,
        "clinical": data.clinical.shape[1],
        "outputs": len(data.classes) or 1,
        "bank": min(BANK, len(rows)) if config.method in ADAPTS else 0,
    }
    record.tags["segmenter"] = str(data.how["segmenter"])
    net = FusionNet(**build)
    source = Patients(data)
    loader = batch_loader(source, rows, shared.batch_size, seed=record.seed, shuffle=True)
    valid: DataLoader[Any] = batch_loader(source, data.rows("valid"), shared.batch_size, seed=record.seed, shuffle=False)
    module = FusionModule(
        net, config, shared, data, steps=shared.epochs * -(-len(loader) // shared.accumulate), debug=compute.debug
    )
    fitted = fit(
        module,
        loader,
        valid,
        epochs=shared.epochs,
        seed=record.seed,
        how=shared,
        compute=compute,
        record=record,
        goal=Monitor("valid_score", lower_is_better=False, perfect=PERFECT, keep="best", patience=shared.patience),
    )
    net.cpu().load_state_dict(fitted.state)
    chosen = np.random.default_rng(record.seed).permutation(rows)[: build["bank"]]
    if len(chosen):
        _fill_bank(net.eval(), source, np.sort(chosen), shared.batch_size)
    about = {
        "modalities": data.modalities[:-1],
        "classes": data.classes,
        "clinical_encoder": data.encoder.plain(),
        "prepared": data.how,
        "sampling_steps": shared.sampling_steps,
        "samples": shared.samples,
        "temperature": shared.temperature,
        "ttt": shared.ttt.model_dump(),
        "loss_weights": shared.loss_weights.model_dump(),
    }
    with atomic_folder(out) as folder:
        save_model(folder / "model.pt", net.state_dict(), build | {"about": about})
        fitted.history.to_csv(folder / "history.csv", index=False)
    return record


@torch.inference_mode()
def _fill_bank(net: FusionNet, source: Patients, rows: NDArray[np.int64], size: int) -> None:
    for start in range(0, len(rows), size):
        batch = source[rows[start : start + size].tolist()]
        features = net.encoders.features(batch["volumes"], batch["clinical"], batch["present"])
        net.bank[start : start + size] = net.encoders.tokens(features, batch["present"])
        net.known[start : start + size] = batch["present"]

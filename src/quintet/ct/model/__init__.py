"""Networks, losses, augmentation, and the LightningModule that trains them."""

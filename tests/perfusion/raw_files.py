"""Files of a raw folder, and how tests damage them."""

import nibabel as nib
import numpy as np


def image_path(raw, case="PerfTerr002-v1", channel=0):
    return raw / "imagesTr" / f"{case}_{channel:04d}.nii.gz"


def label_path(raw, case="PerfTerr002-v1"):
    return raw / "labelsTr" / f"{case}.nii.gz"


def change(path, action, affine=None):
    image = nib.load(path)
    array = np.array(image.dataobj)
    array = action(array) if action else array
    nib.save(nib.Nifti1Image(array, image.affine if affine is None else affine), path)


def set_value(value, share=0.01):
    def action(array):
        array = array.copy()
        array.flat[: max(1, int(array.size * share))] = value
        return array

    return action

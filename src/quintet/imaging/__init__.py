"""Images in and out: pictures (PNG, JPEG, DICOM planes) and volumes (NIfTI)."""

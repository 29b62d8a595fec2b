"""Reading and writing images: pictures (PNG, JPEG, single DICOM images) and volumes (NIfTI, DICOM series)."""

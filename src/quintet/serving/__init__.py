"""Trained runs outside the laboratory: as models of MLflow, registered by name, and as ONNX files."""

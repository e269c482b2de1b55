"""A trained model in a format that other programs run."""

from transferkit.export.onnx import export_onnx

__all__ = ["export_onnx"]

"""Encoders on ONNX Runtime: graphs built from a checkpoint's own files, and no torch."""

"""Encoders on ONNX Runtime: graphs built from a checkpoint's own files, and no torch."""

import os

# ONNX Runtime's own builds report to Microsoft, from a database that they write into the user's
# cache, unless this is set before they are imported. Their thread for it also lets no forked child
# end. Whoever wants the reports sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

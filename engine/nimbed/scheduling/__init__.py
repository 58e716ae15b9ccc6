"""Share one embedder among many concurrent callers, fairly and in large batches."""

from nimbed.scheduling.queue import Observer, QueueState, Timings
from nimbed.scheduling.scheduler import Scheduler

__all__ = ["Observer", "QueueState", "Scheduler", "Timings"]

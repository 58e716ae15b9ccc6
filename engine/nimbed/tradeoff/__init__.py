"""What each way to store vectors costs and keeps, measured on somebody's own passages."""

from nimbed.tradeoff.advice import Advice
from nimbed.tradeoff.measurement import Measured, measure
from nimbed.tradeoff.page import page
from nimbed.tradeoff.result import Tradeoff
from nimbed.tradeoff.study import tradeoff
from nimbed.tradeoff.ways import OVERSAMPLING, TOP, Way, derive, ladder

__all__ = [
    "OVERSAMPLING",
    "TOP",
    "Advice",
    "Measured",
    "Tradeoff",
    "Way",
    "derive",
    "ladder",
    "measure",
    "page",
    "tradeoff",
]

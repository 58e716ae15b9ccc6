"""What each way to store vectors costs and keeps, measured on your own passages."""

from nimbed_tradeoff.advice import Advice
from nimbed_tradeoff.measurement import Measured, measure
from nimbed_tradeoff.page import page
from nimbed_tradeoff.result import Tradeoff
from nimbed_tradeoff.study import tradeoff
from nimbed_tradeoff.ways import OVERSAMPLING, TOP, Way, derive, every_way

__all__ = [
    "OVERSAMPLING",
    "TOP",
    "Advice",
    "Measured",
    "Tradeoff",
    "Way",
    "derive",
    "every_way",
    "measure",
    "page",
    "tradeoff",
]

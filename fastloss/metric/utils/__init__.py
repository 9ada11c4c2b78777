"""What losses and miners of this interface are written with."""

from . import common_functions, distributed, loss_and_miner_utils, module_with_records
from .module_with_records import ModuleWithRecords

__all__ = ["ModuleWithRecords", "common_functions", "distributed", "loss_and_miner_utils", "module_with_records"]

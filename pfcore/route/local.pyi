from typing import final

from pfcore.route.failures import Failures
from pfcore.route.held import Held
from pfcore.route.outcomes import Outcomes
from pfcore.route.table import FlightTable
from pfcore.work.dispatch import Dispatcher

__all__ = ["Local"]

@final
class Local:
    def __init__(
        self, dispatcher: Dispatcher, flights: FlightTable, held: Held, failures: Failures, outcomes: Outcomes
    ) -> None: ...

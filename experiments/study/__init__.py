"""What the experiments share: trainings that are gone on with, a table with the paper's numbers, a figure, a record.

`plan` says what is trained and how much of it, `training` trains it, `judged` evaluates it with other views, `report`
makes the table and result.json, `estimate` says how long it may take, and `command` is the command line of them all.
"""

from experiments.study.plan import Budget, Run, Settings
from experiments.study.report import Conclusion, Row, Study
from experiments.study.training import Outcome, Trained

__all__ = ["Budget", "Conclusion", "Outcome", "Row", "Run", "Settings", "Study", "Trained"]

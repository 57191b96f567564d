"""Exercises and their grader: ``python -m minattn.grade check attention``.

An exercise stands in two files.  ``chapters/<chapter>/exercises.py`` is what students get: functions on NumPy
arrays that raise NotImplementedError, each with a specification, shapes and one worked number as a doctest.
``tests/exercises/<chapter>.py`` is what the grader knows: ``TASKS``, a list of `Task`.

Answers are compared in the grader's process only.  The student's process (`minattn.grade.sandbox`) gets
inputs and returns arrays (`minattn.grade.frames`); the library and the expected values are not in it.
"""

from .score import Report, grade
from .task import Limit, Task, chapters, tasks_of

__all__ = ["Limit", "Report", "Task", "chapters", "grade", "tasks_of"]

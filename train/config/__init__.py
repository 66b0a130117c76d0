"""Settings of a run that all tasks share: dataclasses, rules between values, JSON form."""

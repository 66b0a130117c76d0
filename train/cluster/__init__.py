"""Processes that train together: how they are launched, meet, agree, fail and are preempted."""

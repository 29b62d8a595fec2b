"""Run the stale stages of dvc.yaml concurrently: `quintet repro`.

`run` schedules the stages, `engines` runs their commands on this machine or on a Ray cluster, and `dvc` is the only module that
uses DVC's private functions.
"""

from quintet.pipeline.engines import Job, Local, Ray, free_jobs
from quintet.pipeline.run import Engine, Outcome, reproduce, summary

__all__ = ["Engine", "Job", "Local", "Outcome", "Ray", "free_jobs", "reproduce", "summary"]

"""Settings of trainings whose length is given in steps, so that sets of any size are trained alike."""

import pydantic

from jaxmlip.training.problem import TrainingSettings


class Schedule(TrainingSettings):
    """Settings of a training whose length is given in steps, the same for sets of any size."""

    steps: int = pydantic.Field(
        default=1200, ge=1, description="optimiser steps, rounded to whole epochs; with patience, at most"
    )
    validations: int = pydantic.Field(default=12, ge=1, description="validations, evenly spread over the epochs")

    epochs: int = pydantic.Field(default=1, exclude=True, description="follows from steps")
    validation_every: int = pydantic.Field(default=1, exclude=True, description="follows from validations")
    seed: int = pydantic.Field(default=0, exclude=True, description="the study's")

    @pydantic.model_validator(mode="after")
    def _steps_decide(self) -> "Schedule":
        for name, by in (("epochs", "steps"), ("validation_every", "validations"), ("seed", "the seeds of the study")):
            if name in self.model_fields_set:
                raise ValueError(f"{name} follows from {by} here; leave it out.")
        return self

    def settings(self, samples: int, seed: int) -> TrainingSettings:
        """Settings for a number of training samples: as many epochs as come nearest to the steps."""
        epochs = max(1, round(self.steps / -(-samples // self.batch_size)))
        own = {name: getattr(self, name) for name in TrainingSettings.model_fields}
        own |= {"epochs": epochs, "validation_every": max(1, epochs // self.validations), "seed": seed}
        return TrainingSettings(**own)

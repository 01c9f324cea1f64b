"""What stands in `verdict.json`; `docs/verdict.schema.json` is the JSON schema of `VerdictFile`."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Numbers = float | None | list[Any]


class Average(BaseModel):
    """An average with its standard error; null where a number is not known."""

    model_config = ConfigDict(extra="forbid")

    value: Numbers = Field(description="a number, or a list for a function or a tensor")
    error: Numbers = Field(description="standard error, of the same shape")
    unit: str
    effective_samples: float | None = Field(description="independent samples that would give the same error")
    status: str = Field(description="OK, or why it is not: a name of jaxmlip.Status")
    axis: list[float] | None = Field(default=None, description="of a function, the points it is given at")


class ObservableVerdict(BaseModel):
    """One observable of student and teacher."""

    model_config = ConfigDict(extra="forbid")

    student: Average | None
    teacher: Average | None
    method: Literal["reweighting", "bridge", "response", "direct"] | None = Field(
        description="how the teacher's average was found; null where no way was allowed"
    )
    difference: Average | None = Field(description="student - teacher; of functions the integral of its size")
    difference_sigma: float | None
    tolerance: float | None = Field(description="difference that does no harm, in its unit")
    verdict: Literal["pass", "fail", "cannot tell"]
    reason: str


class VerdictFile(BaseModel):
    """A validation."""

    model_config = ConfigDict(extra="forbid")

    verdict: Literal["pass", "fail", "cannot tell"]
    reason: str
    energy_difference_spread_kT: float | None = Field(
        description="standard deviation of U_teacher - U_student in the student's frames, over kT"
    )
    effective_frames: float | None = Field(description="independent frames that reweighting to the teacher leaves")
    force_calls: dict[str, int] = Field(description="of student and teacher, one structure each")
    refused: dict[str, str] = Field(description="by way, why it was not taken")
    observables: dict[str, ObservableVerdict]
    settings: dict[str, str | None]
    versions: dict[str, str]

"""What stands in `summary.json` of clusters to bulk; `docs/summary.schema.json` is the JSON schema of `SummaryFile`."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from jaxmlip.validation.verdict import Level

FORMAT = 2
"""Of the summary; 1, without a number, had neither answers nor seeds."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Number(_Part):
    """A number with its standard error; null where something is not known."""

    value: float | None
    error: float | None = Field(description="standard error, with the spread over seeds where there are several")
    dof: float | None = Field(description="degrees of freedom of the error; null: infinitely many")
    common_error: float | None = Field(description="part of the error that all seeds share: of frames or the teacher")
    seeds: int | None = Field(default=None, description="students that were averaged; none in what is of one student")
    frames: int | None = Field(default=None, description="test frames")
    effective_samples: float | None = None
    status: str | None = Field(default=None, description="OK, or why it is not, in words")
    noise_floor: float | None = Field(default=None, description="of distances, what sampling noise alone gives")


class Judgement(_Part):
    """What is said of a student."""

    level: Level
    reason: str


class FrameErrors(_Part):
    """Errors on the teacher's bulk frames, which nothing is tuned on; the mean is that of student - teacher."""

    force_rmse_meV_A: Number
    energy_rmse_meV_atom: Number
    energy_mean_meV_atom: Number
    energy_std_meV_atom: Number
    energy_mean_meV_molecule: Number
    energy_rmse_meV_molecule: Number


class Observed(_Part):
    """One simulation; without averages if it failed."""

    stable: bool
    outcome: str
    rdf_error_A: dict[str, Number] | None = Field(
        default=None, description="integral of |g - g_teacher| by pair of elements, and their mean"
    )
    potential_energy_deviation_meV_molecule: Number | None = None
    potential_energy_eV: Number | None = None
    temperature_K: Number | None = None
    density_g_cm3: Number | None = None
    density_deviation_percent: Number | None = None
    verdict: Judgement


class OneStudent(FrameErrors, Observed):
    """One potential: errors on frames, and its simulation in the first ensemble."""

    ensembles: dict[str, Observed] | None = Field(default=None, description="further ensembles, by name")


class Student(OneStudent):
    """The students of one strategy and set of labels, as one."""

    by_seed: list[OneStudent] | None = Field(default=None, description="each of them, where there are several")


class Clusters(_Part):
    """The structures with accurate labels."""

    number: int
    radius_A: float


class Seeds(_Part):
    """How many students there are of each strategy."""

    students: int
    own_foundations: bool
    without: list[str] = Field(description="strategies that draw nothing")


class Limits(_Part):
    """When a student is trusted, and at which level questions are answered."""

    energy_meV_molecule: float
    rdf_A: float
    density: float
    force: float
    level: float


class TestFrames(_Part):
    """The frames on which errors are measured."""

    frames: int
    force_rms_meV_A: float


class CorrelationRow(_Part):
    """How the error of an observable goes with an error on test frames."""

    observable: str
    predictor: str
    pearson: float | None
    pearson_interval: tuple[float | None, float | None]
    pearson_error: float | None
    spearman: float | None
    spearman_interval: tuple[float | None, float | None]
    spearman_error: float | None
    students: int
    clusters: int = Field(description="students that differ in more than their seed")
    level: float
    left_out: int = Field(description="students of which one of the two is not known")


class Answer(_Part):
    """The answer to one question of the study."""

    question: str
    level: float
    answer: Literal["yes", "no", "cannot tell"]
    sentence: str
    needs: str | None = Field(description="what it would take to tell")
    evidence: list[dict[str, Any]] = Field(description="the numbers and tests behind it")


class MadeBy(_Part):
    """A stage of the run."""

    stage: str = Field(description="folder below stages/")
    key: str = Field(description="digest of its inputs")


class Origin(_Part):
    """The stages that the numbers of one student come from."""

    potential: MadeBy | None
    runs: dict[str, MadeBy]


class SummaryFile(_Part):
    """A study."""

    study: Literal["clusters_to_bulk"]
    format: int
    name: str
    seed: int
    teachers: dict[str, str]
    setting: str = Field(description="digest of all that is equal where runs can be compared by clusters")
    clusters: Clusters
    ensembles: list[str]
    seeds: Seeds
    tolerances: Limits
    test: TestFrames
    low_teacher: FrameErrors
    teacher: Student
    foundation: Student
    students: dict[str, dict[str, Student]] = Field(description="by strategy and labels")
    correlations: list[CorrelationRow]
    answers: dict[str, Answer]
    provenance: dict[str, MadeBy | list[Origin]]
    wall_s: float
    stages_s: dict[str, float]
    versions: dict[str, str]


class ComparisonFile(_Part):
    """What `jaxmlip report` writes of several studies."""

    studies: list[str] = Field(description="files of their summaries")
    students: int
    correlations: list[CorrelationRow]
    answers: dict[str, Answer]
    versions: dict[str, str]

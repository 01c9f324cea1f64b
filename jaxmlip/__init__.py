"""The public names of jaxmlip, imported from their modules when first used: `import jaxmlip as jm`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxmlip.observables.angular import AngularDistribution as AngularDistribution
    from jaxmlip.observables.angular import TetrahedralDistribution as TetrahedralDistribution
    from jaxmlip.observables.angular import TetrahedralOrder as TetrahedralOrder
    from jaxmlip.observables.cells import CellAngles as CellAngles
    from jaxmlip.observables.cells import CellLengths as CellLengths
    from jaxmlip.observables.cells import Enthalpy as Enthalpy
    from jaxmlip.observables.cells import Volume as Volume
    from jaxmlip.observables.coordination import CoordinationNumber as CoordinationNumber
    from jaxmlip.observables.dynamics import DebyeWallerFactor as DebyeWallerFactor
    from jaxmlip.observables.dynamics import DiffusionConstant as DiffusionConstant
    from jaxmlip.observables.dynamics import MeanSquaredDisplacement as MeanSquaredDisplacement
    from jaxmlip.observables.dynamics import VelocityAutocorrelation as VelocityAutocorrelation
    from jaxmlip.observables.dynamics import VibrationalDensityOfStates as VibrationalDensityOfStates
    from jaxmlip.observables.elastic import ElasticFromStrain as ElasticFromStrain
    from jaxmlip.observables.elastic import ElasticFromStress as ElasticFromStress
    from jaxmlip.observables.estimate import Estimate as Estimate
    from jaxmlip.observables.estimate import Status as Status
    from jaxmlip.observables.fluctuations import Compressibility as Compressibility
    from jaxmlip.observables.fluctuations import EnergySpread as EnergySpread
    from jaxmlip.observables.fluctuations import FluctuationObservable as FluctuationObservable
    from jaxmlip.observables.fluctuations import HeatCapacity as HeatCapacity
    from jaxmlip.observables.fluctuations import ThermalExpansion as ThermalExpansion
    from jaxmlip.observables.force_errors import ElementForceError as ElementForceError
    from jaxmlip.observables.force_errors import MolecularForceError as MolecularForceError
    from jaxmlip.observables.force_errors import SquaredStressError as SquaredStressError
    from jaxmlip.observables.frame import FrameState as FrameState
    from jaxmlip.observables.molecular import BondAngle as BondAngle
    from jaxmlip.observables.molecular import BondLength as BondLength
    from jaxmlip.observables.names import observable_from_text as observable_from_text
    from jaxmlip.observables.names import register_observable as register_observable
    from jaxmlip.observables.observable import Observable as Observable
    from jaxmlip.observables.structure import RDF as RDF
    from jaxmlip.observables.structure import rdf_error as rdf_error
    from jaxmlip.observables.thermodynamics import Density as Density
    from jaxmlip.observables.thermodynamics import EnergyDifference as EnergyDifference
    from jaxmlip.observables.thermodynamics import PotentialEnergy as PotentialEnergy
    from jaxmlip.observables.thermodynamics import Pressure as Pressure
    from jaxmlip.observables.thermodynamics import PressureTensor as PressureTensor
    from jaxmlip.observables.thermodynamics import SquaredForceError as SquaredForceError
    from jaxmlip.observables.thermodynamics import Temperature as Temperature
    from jaxmlip.observables.time_observable import TimeObservable as TimeObservable
    from jaxmlip.potentials.ase import Calculator as Calculator
    from jaxmlip.potentials.ase_potential import AsePotential as AsePotential
    from jaxmlip.potentials.ase_potential import from_ase as from_ase
    from jaxmlip.potentials.chgnet import CHGNetModel as CHGNetModel
    from jaxmlip.potentials.equivariant import Equivariant as Equivariant
    from jaxmlip.potentials.errors import compare as compare
    from jaxmlip.potentials.evaluation import label as label
    from jaxmlip.potentials.evaluation import predict as predict
    from jaxmlip.potentials.exporting import export_potential as export_potential
    from jaxmlip.potentials.files import load as load
    from jaxmlip.potentials.files import read_header as read_header
    from jaxmlip.potentials.files import save as save
    from jaxmlip.potentials.kinds import register_names as register_names
    from jaxmlip.potentials.kinds import register_potential as register_potential
    from jaxmlip.potentials.potential import Potential as Potential
    from jaxmlip.potentials.potential import evaluate as evaluate
    from jaxmlip.potentials.trainable import Trainable as Trainable
    from jaxmlip.potentials.trainable import trainable as trainable
    from jaxmlip.simulation.barostats import NPT as NPT
    from jaxmlip.simulation.barostats import NPTNoseHoover as NPTNoseHoover
    from jaxmlip.simulation.dynamics import Dynamics as Dynamics
    from jaxmlip.simulation.dynamics import Ensemble as Ensemble
    from jaxmlip.simulation.ensembles import NVE as NVE
    from jaxmlip.simulation.ensembles import NVT as NVT
    from jaxmlip.simulation.ensembles import NVTNoseHoover as NVTNoseHoover
    from jaxmlip.simulation.ensembles import NVTVelocityRescaling as NVTVelocityRescaling
    from jaxmlip.simulation.frames import open_frames as open_frames
    from jaxmlip.simulation.relaxation import Relaxed as Relaxed
    from jaxmlip.simulation.relaxation import relax as relax
    from jaxmlip.simulation.rollout import prepare_rollout as prepare_rollout
    from jaxmlip.simulation.rollout import rollout as rollout
    from jaxmlip.simulation.schedules import Ramp as Ramp
    from jaxmlip.simulation.simulate import simulate as simulate
    from jaxmlip.simulation.trajectory import Outcome as Outcome
    from jaxmlip.simulation.trajectory import Run as Run
    from jaxmlip.simulation.trajectory import load_run as load_run
    from jaxmlip.study.clusters_to_bulk.comparison import compare_studies as compare_studies
    from jaxmlip.study.correlations import StudentErrors as StudentErrors
    from jaxmlip.study.correlations import correlate as correlate
    from jaxmlip.study.correlations import read_students as read_students
    from jaxmlip.study.info import Info as Info
    from jaxmlip.study.info import info as info
    from jaxmlip.study.plot_run import plot_run as plot_run
    from jaxmlip.systems.clusters import cut_clusters as cut_clusters
    from jaxmlip.systems.compositions import split_by_composition as split_by_composition
    from jaxmlip.systems.crystals import many_crystals as many_crystals
    from jaxmlip.systems.dataset import Frame as Frame
    from jaxmlip.systems.dataset import read_frames as read_frames
    from jaxmlip.systems.dataset import write_frames as write_frames
    from jaxmlip.systems.graph import Graph as Graph
    from jaxmlip.systems.graph import batch_graphs as batch_graphs
    from jaxmlip.systems.graph import edge_vectors as edge_vectors
    from jaxmlip.systems.graph import graph_from_atoms as graph_from_atoms
    from jaxmlip.systems.ice import ice_ih as ice_ih
    from jaxmlip.systems.matpes import isolated_atom_energies as isolated_atom_energies
    from jaxmlip.systems.store import FrameStore as FrameStore
    from jaxmlip.systems.store import write_store as write_store
    from jaxmlip.training.distill import distil as distil
    from jaxmlip.training.finetune import finetune as finetune
    from jaxmlip.training.objective import Term as Term
    from jaxmlip.training.objective import TermSource as TermSource
    from jaxmlip.training.objective import TermSums as TermSums
    from jaxmlip.training.problem import TrainingDiverged as TrainingDiverged
    from jaxmlip.training.problem import TrainingProblem as TrainingProblem
    from jaxmlip.training.problem import TrainingSettings as TrainingSettings
    from jaxmlip.training.strategies.base import Strategy as Strategy
    from jaxmlip.training.strategies.continued import SingleFidelity as SingleFidelity
    from jaxmlip.training.strategies.fresh import Differential as Differential
    from jaxmlip.training.strategies.fresh import Direct as Direct
    from jaxmlip.training.strategies.multi_fidelity import MultiFidelity as MultiFidelity
    from jaxmlip.training.strategies.pair_difference import PairDifference as PairDifference
    from jaxmlip.training.strategies.registry import register_strategy as register_strategy
    from jaxmlip.training.strategies.tangent import TangentKernel as TangentKernel
    from jaxmlip.training.strategies.tangent import tangent_posterior as tangent_posterior
    from jaxmlip.training.trainer import train as train
    from jaxmlip.training.trainer import train_many as train_many
    from jaxmlip.validation.averages import average as average
    from jaxmlip.validation.averages import frame_states as frame_states
    from jaxmlip.validation.averages import observe as observe
    from jaxmlip.validation.calibration import Calibration as Calibration
    from jaxmlip.validation.calibration import calibration as calibration
    from jaxmlip.validation.certificate import ForceErrorCertificate as ForceErrorCertificate
    from jaxmlip.validation.certificate import force_error_certificate as force_error_certificate
    from jaxmlip.validation.comparison import Validation as Validation
    from jaxmlip.validation.energies import frame_energies as frame_energies
    from jaxmlip.validation.gradients import Gradient as Gradient
    from jaxmlip.validation.gradients import gradient as gradient
    from jaxmlip.validation.gradients import mean_of_frames as mean_of_frames
    from jaxmlip.validation.hybrid import HybridRun as HybridRun
    from jaxmlip.validation.hybrid import hybrid_monte_carlo as hybrid_monte_carlo
    from jaxmlip.validation.influence import Influence as Influence
    from jaxmlip.validation.influence import LabelChoice as LabelChoice
    from jaxmlip.validation.influence import Targets as Targets
    from jaxmlip.validation.influence import choose_labels as choose_labels
    from jaxmlip.validation.influence import influence as influence
    from jaxmlip.validation.last_layer import last_layer_posterior as last_layer_posterior
    from jaxmlip.validation.pathwise import pathwise_gradient as pathwise_gradient
    from jaxmlip.validation.proposals import Proposal as Proposal
    from jaxmlip.validation.response import PredictedError as PredictedError
    from jaxmlip.validation.response import predicted_error as predicted_error
    from jaxmlip.validation.task import Sampling as Sampling
    from jaxmlip.validation.tuning import ObservableTarget as ObservableTarget
    from jaxmlip.validation.tuning import ObservableTuning as ObservableTuning
    from jaxmlip.validation.tuning import OwnSimulation as OwnSimulation
    from jaxmlip.validation.tuning import own_simulations as own_simulations
    from jaxmlip.validation.uncertainty import Uncertainty as Uncertainty
    from jaxmlip.validation.uncertainty import observable_uncertainty as observable_uncertainty
    from jaxmlip.validation.validate import validate as validate
    from jaxmlip.validation.verdict import Tolerances as Tolerances
    from jaxmlip.validation.verdict import verdict as verdict
    from jaxmlip.validation.weights import free_energy_difference as free_energy_difference
    from jaxmlip.validation.weights import reduced_energies as reduced_energies
    from jaxmlip.validation.weights import reweighted as reweighted

_HOME = {
    "Observable": "observables.observable",
    "AngularDistribution": "observables.angular",
    "TetrahedralDistribution": "observables.angular",
    "TetrahedralOrder": "observables.angular",
    "CoordinationNumber": "observables.coordination",
    "BondAngle": "observables.molecular",
    "BondLength": "observables.molecular",
    "CellAngles": "observables.cells",
    "CellLengths": "observables.cells",
    "Enthalpy": "observables.cells",
    "Volume": "observables.cells",
    "Compressibility": "observables.fluctuations",
    "EnergySpread": "observables.fluctuations",
    "FluctuationObservable": "observables.fluctuations",
    "HeatCapacity": "observables.fluctuations",
    "ThermalExpansion": "observables.fluctuations",
    "ElementForceError": "observables.force_errors",
    "MolecularForceError": "observables.force_errors",
    "SquaredStressError": "observables.force_errors",
    "DebyeWallerFactor": "observables.dynamics",
    "DiffusionConstant": "observables.dynamics",
    "MeanSquaredDisplacement": "observables.dynamics",
    "VelocityAutocorrelation": "observables.dynamics",
    "VibrationalDensityOfStates": "observables.dynamics",
    "TimeObservable": "observables.time_observable",
    "ElasticFromStrain": "observables.elastic",
    "ElasticFromStress": "observables.elastic",
    "observable_from_text": "observables.names",
    "register_observable": "observables.names",
    "average": "validation.averages",
    "Estimate": "observables.estimate",
    "Status": "observables.estimate",
    "RDF": "observables.structure",
    "rdf_error": "observables.structure",
    "Density": "observables.thermodynamics",
    "PotentialEnergy": "observables.thermodynamics",
    "Temperature": "observables.thermodynamics",
    "EnergyDifference": "observables.thermodynamics",
    "Pressure": "observables.thermodynamics",
    "SquaredForceError": "observables.thermodynamics",
    "PressureTensor": "observables.thermodynamics",
    "Calculator": "potentials.ase",
    "from_ase": "potentials.ase_potential",
    "AsePotential": "potentials.ase_potential",
    "CHGNetModel": "potentials.chgnet",
    "Equivariant": "potentials.equivariant",
    "label": "potentials.evaluation",
    "predict": "potentials.evaluation",
    "export_potential": "potentials.exporting",
    "load": "potentials.files",
    "save": "potentials.files",
    "read_header": "potentials.files",
    "register_names": "potentials.kinds",
    "register_potential": "potentials.kinds",
    "Potential": "potentials.potential",
    "evaluate": "potentials.potential",
    "Trainable": "potentials.trainable",
    "trainable": "potentials.trainable",
    "NPT": "simulation.barostats",
    "NPTNoseHoover": "simulation.barostats",
    "NVE": "simulation.ensembles",
    "NVT": "simulation.ensembles",
    "NVTNoseHoover": "simulation.ensembles",
    "NVTVelocityRescaling": "simulation.ensembles",
    "Dynamics": "simulation.dynamics",
    "Ensemble": "simulation.dynamics",
    "Relaxed": "simulation.relaxation",
    "relax": "simulation.relaxation",
    "prepare_rollout": "simulation.rollout",
    "rollout": "simulation.rollout",
    "Ramp": "simulation.schedules",
    "simulate": "simulation.simulate",
    "FrameState": "observables.frame",
    "Outcome": "simulation.trajectory",
    "Run": "simulation.trajectory",
    "load_run": "simulation.trajectory",
    "cut_clusters": "systems.clusters",
    "split_by_composition": "systems.compositions",
    "many_crystals": "systems.crystals",
    "Frame": "systems.dataset",
    "read_frames": "systems.dataset",
    "write_frames": "systems.dataset",
    "FrameStore": "systems.store",
    "open_frames": "simulation.frames",
    "write_store": "systems.store",
    "Graph": "systems.graph",
    "batch_graphs": "systems.graph",
    "graph_from_atoms": "systems.graph",
    "edge_vectors": "systems.graph",
    "ice_ih": "systems.ice",
    "isolated_atom_energies": "systems.matpes",
    "distil": "training.distill",
    "PairDifference": "training.strategies.pair_difference",
    "Term": "training.objective",
    "TermSource": "training.objective",
    "TermSums": "training.objective",
    "TrainingProblem": "training.problem",
    "Differential": "training.strategies.fresh",
    "Direct": "training.strategies.fresh",
    "MultiFidelity": "training.strategies.multi_fidelity",
    "SingleFidelity": "training.strategies.continued",
    "finetune": "training.finetune",
    "TangentKernel": "training.strategies.tangent",
    "TrainingDiverged": "training.problem",
    "TrainingSettings": "training.problem",
    "Strategy": "training.strategies.base",
    "register_strategy": "training.strategies.registry",
    "train": "training.trainer",
    "train_many": "training.trainer",
    "compare": "potentials.errors",
    "frame_states": "validation.averages",
    "observe": "validation.averages",
    "HybridRun": "validation.hybrid",
    "hybrid_monte_carlo": "validation.hybrid",
    "Proposal": "validation.proposals",
    "PredictedError": "validation.response",
    "predicted_error": "validation.response",
    "compare_studies": "study.clusters_to_bulk.comparison",
    "StudentErrors": "study.correlations",
    "correlate": "study.correlations",
    "read_students": "study.correlations",
    "Info": "study.info",
    "info": "study.info",
    "plot_run": "study.plot_run",
    "Tolerances": "validation.verdict",
    "verdict": "validation.verdict",
    "free_energy_difference": "validation.weights",
    "reweighted": "validation.weights",
    "reduced_energies": "validation.weights",
    "pathwise_gradient": "validation.pathwise",
    "Validation": "validation.comparison",
    "ObservableTarget": "validation.tuning",
    "ObservableTuning": "validation.tuning",
    "OwnSimulation": "validation.tuning",
    "own_simulations": "validation.tuning",
    "validate": "validation.validate",
    "Sampling": "validation.task",
    "mean_of_frames": "validation.gradients",
    "Gradient": "validation.gradients",
    "gradient": "validation.gradients",
    "frame_energies": "validation.energies",
    "Calibration": "validation.calibration",
    "calibration": "validation.calibration",
    "ForceErrorCertificate": "validation.certificate",
    "force_error_certificate": "validation.certificate",
    "last_layer_posterior": "validation.last_layer",
    "Uncertainty": "validation.uncertainty",
    "observable_uncertainty": "validation.uncertainty",
    "Influence": "validation.influence",
    "LabelChoice": "validation.influence",
    "Targets": "validation.influence",
    "choose_labels": "validation.influence",
    "influence": "validation.influence",
    "tangent_posterior": "training.strategies.tangent",
}

__all__ = list(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import a public name from its module: `jaxmlip --help` needs none of them, and jax takes seconds to import."""
    if name not in _HOME:
        raise AttributeError(f"module 'jaxmlip' has no attribute {name!r}")
    return getattr(import_module(f"jaxmlip.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOME)

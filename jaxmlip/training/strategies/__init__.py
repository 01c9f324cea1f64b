"""Ways to lift a potential to another level of theory; each says what is trained on what, and what is deployed.

A strategy turns a foundation potential and labelled frames of several fidelities into a `TrainingProblem`, and what
comes back from the trainer into a Potential. The names follow the literature on multi-fidelity potentials: differential
or Δ-learning (Ramakrishnan et al., J. Chem. Theory Comput. 11, 2087 (2015)), single fidelity for fine-tuning on the new
labels alone, multi fidelity for a shared trunk with a readout per level and replay of the old labels (multi-head
fine-tuning of MACE). All are trained with the same settings unless one is configured with changes of its own.
"""
